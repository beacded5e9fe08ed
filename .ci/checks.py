"""Checks of the repository's promises: `python .ci/checks.py NAME`. Each prints what is wrong and exits with 1."""
import ast
import base64
import difflib
import json
import multiprocessing
import os
import random
import re
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def notebooks_in(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*.ipynb") if ".ipynb_checkpoints" not in path.parts)


def copy_of_repository() -> Path:
    "The tracked files in a folder of their own, as a repository whose changes git can tell."
    copy = Path(tempfile.mkdtemp(dir=os.environ.get("CHECKS_FOLDER"))) / "copy"
    files = subprocess.run(
        ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.split("\0")
    for name in filter(None, files):
        if (ROOT / name).exists():
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, copy / name)
    git = ["git", "-c", "user.name=check", "-c", "user.email=check@example.org", "-c", "commit.gpgsign=false"]
    for command in (
        ["git", "init", "-q"],
        ["git", "add", "-A"],
        [*git, "commit", "-qm", "as committed", "--no-verify"],
    ):
        subprocess.run(command, cwd=copy, check=True)
    return copy


def run_in(copy: Path, *command: str) -> None:
    "Run a command in the copy, with the copy as the repository."
    subprocess.run(command, cwd=copy, check=True, env=os.environ | {"JEM_ROOT": str(copy), "PYTHONPATH": str(copy)})


def changes(copy: Path, *paths: str) -> list[str]:
    return subprocess.run(
        ["git", "status", "--porcelain", *paths], cwd=copy, capture_output=True, text=True, check=True
    ).stdout.splitlines()


def clean() -> list[str]:
    copy = copy_of_repository()
    run_in(copy, "nbdev_clean")
    return [f"not clean, run nbdev_clean: {line}" for line in changes(copy, "nbs")]


def export() -> list[str]:
    copy = copy_of_repository()
    for module in (copy / "jem_nb").rglob("*.py"):
        if module.name != "__init__.py":
            module.unlink()  # what no notebook exports does not come back
    run_in(copy, "nbdev_export")
    return [
        f"differs from its notebook, run nbdev_export (D: no notebook exports it): {line}"
        for line in changes(copy, "jem_nb")
    ]


def notebooks() -> list[str]:
    from jem_nb.reporting.publishing import SAFE_OUTPUTS
    problems = []
    for path in notebooks_in(ROOT / "nbs") + notebooks_in(ROOT / "reports"):
        cells = json.loads(path.read_text())["cells"]
        outputs = [output for cell in cells if cell["cell_type"] == "code" for output in cell["outputs"]]
        for tag in ("parameters", "conclusion"):
            tagged = sum(tag in cell["metadata"].get("tags", []) for cell in cells)
            if path.name.startswith("exp_") and tagged != 1:
                problems.append(f"{path.name}: {tagged} cells tagged {tag!r}, expected one")
        if path.parent.name == "nbs" and path.name.startswith("exp_") and outputs:
            problems.append(f"{path.name}: {len(outputs)} stored outputs, expected none")
        if any("/site-packages/" in json.dumps(output) for output in outputs):
            problems.append(
                f"{path.name}: an output names a path of some machine, expected none; silence the warning and run it "
                "again"
            )
        silent = [
            cell["id"]
            for cell in cells
            if cell["cell_type"] == "code"
            and re.search(r"\b(display|print)\(", "".join(cell["source"]))
            and not cell["outputs"]
        ]
        if path.name == "index.ipynb" and silent:
            problems.append(
                f"{path.name}: no stored outputs of cells {silent}, expected what readers see without running it; run "
                "it again"
            )
        kinds = {kind for output in outputs for kind in output.get("data", {})} - set(SAFE_OUTPUTS)
        if kinds or any(output["output_type"] == "error" for output in outputs):
            problems.append(
                f"{path.name}: outputs of kind {sorted(kinds) or 'error'}, expected only {sorted(SAFE_OUTPUTS)}"
            )
    return problems


def pages() -> list[str]:
    "README and the table of results are short, and README's map is a picture of the tour."
    limits = {"README.md": 900, "reports/README.md": 1600}
    words = {name: len((ROOT / name).read_text().split()) for name in limits}
    problems = [f"{name}: {words[name]} words, expected fewer than {limit}"
                for name, limit in limits.items() if words[name] >= limit]
    picture = base64.b64encode((ROOT / "reports" / "map.png").read_bytes()).decode()
    if picture not in (ROOT / "nbs" / "index.ipynb").read_text().replace("\\n", ""):
        problems.append("reports/map.png is no picture of nbs/index.ipynb: save the picture of its map there")
    return problems


# bytes and files that a clone may have; the judges of what models draw take 5 of them
LARGEST_TREE = 56_000_000, 1_500
LARGEST_RUN = 140_000  # bytes of its record and its pictures, as they are without packing


def tracked(*paths: str) -> dict[str, int]:
    "Bytes of the tracked files, by name."
    names = subprocess.run(
        ["git", "ls-files", "-z", *paths], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.split("\0")
    return {name: (ROOT / name).stat().st_size for name in names if name and (ROOT / name).exists()}


def wings(root: Path = ROOT) -> list[str]:
    """Imports that do not go down: a wing may import lower-numbered wings, a notebook lower-numbered ones of its wing.

    The order stands in the names of folders and notebooks of nbs/, and nowhere else.
    """
    problems, order = [], {}  # wing.room -> its number, such as 02.13
    for path in (root / "nbs").glob("[0-9][0-9]_*/[0-9][0-9]_*.ipynb"):
        order[f"{path.parent.name[3:]}.{path.stem[3:]}"] = f"{path.parent.name[:2]}.{path.stem[:2]}"
    for path in sorted((root / "jem_nb").rglob("*.py")):
        wing, room = path.parent.name, path.stem
        if room.startswith("_"):
            continue
        mine = order.get(f"{wing}.{room}", "99")  # what a page directly in nbs/ exports stands above all wings
        if mine == "99" and wing != "jem_nb":
            problems.append(f"{path.relative_to(root)}: no notebook nbs/NN_{wing}/NN_{room}.ipynb, expected one")
            continue
        problems += [f"{wing}.{room} ({mine}) imports {other} ({order.get(other, 'which no notebook exports')}): "
                     "expected lower numbers only; move down what it needs, or move it up"
                     for other in imported(path, wing) if order.get(other, "99") >= mine]
    return problems


def imported(path: Path, wing: str) -> list[str]:  # wing.room, each once
    "The modules of this package that a module imports, anywhere in its text."
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found += [name.name for name in node.names if name.name.startswith("jem_nb.")]
        elif isinstance(node, ast.ImportFrom):
            above = {0: "", 1: "jem_nb." if wing == "jem_nb" else f"jem_nb.{wing}.", 2: "jem_nb."}[node.level]
            module = f"{above}{node.module or ''}".strip(".")
            if module.startswith("jem_nb."):
                deep = module.count(".") >= 2  # else a wing, of which the names are modules
                found += [module] if deep else [f"{module}.{name.name}" for name in node.names]
    return sorted({name.removeprefix("jem_nb.") for name in found})


def planted() -> list[str]:
    "Whether `wings` notices an import that goes up, from wing to wing and within a wing."
    copy, missed = copy_of_repository(), []
    upward = (
        ("core/paths.py", "from ..reporting.tables import arm_label"),
        ("core/paths.py", "from .files import locked"),
        ("data/tiles.py", "import jem_nb.maps.command"),
    )
    for place, line in upward:
        before = (copy / "jem_nb" / place).read_text()
        (copy / "jem_nb" / place).write_text(f"{before}\n{line}\n")
        missed += [] if wings(copy) else [f"`{line}` in {place} was not noticed"]
        (copy / "jem_nb" / place).write_text(before)
    return missed + [f"without them: {problem}" for problem in wings(copy)]


def opening(path: Path) -> tuple[str, str]:
    "A notebook's title and its one-line promise."
    words = "".join(json.loads(path.read_text())["cells"][0]["source"])
    title, promise = re.match(r"# (.*)", words), re.search(r"^> (.*(?:\n.+)*)", words, re.MULTILINE)
    return title[1] if title else path.stem, " ".join(promise[1].split()) if promise else ""


def table_of_contents() -> str:
    nbs = ROOT / "nbs"
    first = [nbs / f"{name}.ipynb" for name in ("index", "explore", "what_now")]
    parts = [("Begin here", first)]
    parts += [(folder.name.replace("_", " "), notebooks_in(folder)) for folder in sorted(nbs.glob("[0-9][0-9]_*/"))]
    additions = sorted(nbs.glob("to_add_*.ipynb"))
    parts += [("To add something", additions)]
    parts += [("Experiments", [path for path in sorted(nbs.glob("*.ipynb")) if path not in first + additions])]
    lines = ["# Notebooks", "", "Wing by wing, in the order in which they import each other. "
             "Written by `python .ci/checks.py contents --write`."]
    for heading, paths in parts:
        lines += ["", f"## {heading}", ""]
        for path in paths:
            title, promise = opening(path)
            lines.append(f"- [{path.stem}]({path.relative_to(nbs)}): {promise or title}")
    return "\n".join(lines) + "\n"


def contents(*options: str) -> list[str]:
    "nbs/README.md against the notebooks, and relative links of all pages; `contents --write` writes it."
    path, wanted = ROOT / "nbs" / "README.md", table_of_contents()
    if "--write" in options:
        path.write_text(wanted)
    current = path.exists() and path.read_text() == wanted
    stale = "nbs/README.md is not what the notebooks say: python .ci/checks.py contents --write"
    return ([] if current else [stale]) + broken_links()


def broken_links() -> list[str]:
    pages = {path: path.read_text() for path in (*ROOT.glob("*.md"), *ROOT.glob("*/README.md"))}
    for path in notebooks_in(ROOT / "nbs") + notebooks_in(ROOT / "reports"):
        cells = json.loads(path.read_text())["cells"]
        pages[path] = "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown")
    to_file = re.compile(r"\]\(([^)\s#:]+\.(?:ipynb|md|png|csv|py))(?:#[^)]*)?\)")
    return [f"{path.relative_to(ROOT)}: {link} leads nowhere"
            for path, words in pages.items() for link in to_file.findall(words) if not (path.parent / link).exists()]


WIDEST, LONGEST_CELL, LONGEST_FUNCTION = 120, 40, 45  # columns, lines and lines


def sizes() -> list[str]:
    "Lines, cells and functions can be read at a glance; a table's row and a class are as long as they are."
    problems = []
    for path in notebooks_in(ROOT / "nbs"):
        for cell in json.loads(path.read_text())["cells"]:
            place, lines = f"{path.relative_to(ROOT)}, cell {cell['id']}", "".join(cell["source"]).splitlines()
            wide = [line for line in lines if len(line) > WIDEST and not line.startswith("|")]
            problems += [f"{place}: {len(line)} columns, expected at most {WIDEST}: {line[:60]}" for line in wide]
            if cell["cell_type"] == "code":
                problems += [f"{place}: {problem}" for problem in sizes_of_code(lines)]
    return problems


def sizes_of_code(lines: list[str]) -> list[str]:
    "What is too long in a cell of code."
    module = ast.parse("\n".join("" if line.startswith(("%", "!")) else line for line in lines))
    functions = [node for node in ast.walk(module) if isinstance(node, ast.FunctionDef)]
    lengths = {node.name: node.end_lineno - node.lineno + 1 for node in functions}
    problems = [
        f"{name} has {length} lines, expected at most {LONGEST_FUNCTION}"
        for name, length in lengths.items() if length > LONGEST_FUNCTION
    ]
    # a class or a function is not divided among cells
    if len(lines) > LONGEST_CELL and not any(isinstance(node, (ast.ClassDef, ast.FunctionDef)) for node in module.body):
        problems.append(f"{len(lines)} lines, expected at most {LONGEST_CELL}; divide it")
    return problems


def records() -> list[str]:
    from jem_nb.experiments.record_command import packed_runs
    from jem_nb.experiments.record_packs import open_pack
    from jem_nb.experiments.records import each_record, read_record
    problems, loose = [], {}
    for name, size in tracked("reports/runs").items():
        place, file = Path(name).parent, Path(name).name
        if len(place.parts) == 4:  # a run that is not packed
            loose[place] = loose.get(place, 0) + size
        elif file != "records.zip":
            problems.append(f"{name}: expected packs (records.zip) and files of runs only")
    problems += [f"{place}: committed without result.json" for place in loose if read_record(ROOT / place) is None]
    for folder in sorted((ROOT / "reports" / "runs").glob("*/")):
        if pack := open_pack(folder):
            packed = packed_runs(pack)  # every file read, and its checksum compared
            # belong to their identifiers
            names = [record["run_id"] for record in each_record(folder.name, only=packed)]
            problems += [f"{pack.path}: {len(packed)} runs, {len(names)} records"] * (names != sorted(packed))
            loose |= {folder.relative_to(ROOT) / run: sum(map(len, files.values())) for run, files in packed.items()}
    problems += [
        f"{place}: {size:,} bytes, expected at most {LARGEST_RUN:,}"
        for place, size in loose.items()
        if size > LARGEST_RUN
    ]
    files = tracked()
    for what, number, largest in zip(("bytes", "files"), (sum(files.values()), len(files)), LARGEST_TREE):
        print(f"the tracked tree has {number:,} {what}")
        if number > largest:
            problems.append(
                f"the tracked tree has {number:,} {what}, expected at most {largest:,}: pack finished runs "
                "(jem-records pack)"
            )
    return problems


def rebuild() -> list[str]:
    copy = copy_of_repository()
    for folder in ("tables", "figures"):
        shutil.rmtree(copy / "reports" / folder, ignore_errors=True)
    environment = os.environ | {"JEM_ROOT": str(copy), "PYTHONPATH": str(copy)}
    environment.pop("JEM_DATA", None)  # records are enough

    def publish(name: str, parameters: dict) -> None:  # executed once, with its tables and figures
        records_only = {"train_missing": False} if name.startswith("exp_") else {}
        given = json.dumps(parameters | records_only | {"publish": True})
        command = "import json, sys; from jem_nb.reporting.publishing import publish_notebook as publish"
        command = [sys.executable, "-c", f"{command}; publish(sys.argv[1], json.loads(sys.argv[2]))", name, given]
        subprocess.run(command, cwd=copy, check=True, env=environment)

    pages = published_with()
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda name: publish(name, pages[name]), (name for name in pages if name.startswith("exp_"))))
    for name in pages:  # those that read others' tables
        if not name.startswith("exp_"):
            publish(name, pages[name])
    return [problem for path in published(ROOT) | published(copy) for problem in difference(ROOT / path, copy / path)]


def published_with() -> dict[str, dict]:
    "Every published notebook and what it was called with, its defaults apart. Pages that read others' tables are last."
    def last(page): return not page.name.startswith("exp_"), page.name

    found = {}
    for page in sorted((ROOT / "reports").glob("*.ipynb"), key=last):
        defaults = assigned(ROOT / "nbs" / page.name, "parameters")
        called = assigned(page, "injected-parameters")
        found[page.stem] = {name: value for name, value in called.items() if value != defaults.get(name)}
    return found


def assigned(notebook: Path, tag: str) -> dict:
    "The names and values that the cell with a tag assigns."
    cells = json.loads(notebook.read_text())["cells"]
    source = "".join("".join(cell["source"]) for cell in cells if tag in cell["metadata"].get("tags", []))
    pairs = [(getattr(line, "target", None) or line.targets[0], line.value) for line in ast.parse(source).body]
    return {name.id: ast.literal_eval(value) for name, value in pairs}


def published(root: Path) -> set[Path]:
    "What experiments write, relative to the repository."
    reports = root / "reports"
    return {
        Path("README.md"),
        Path("reports/README.md"),
        *(p.relative_to(root) for kind in ("tables/*.csv", "figures/*.png", "*.ipynb") for p in reports.glob(kind)),
    }


def difference(committed: Path, rebuilt: Path) -> list[str]:
    "How a rebuilt file differs: texts to the letter, pictures by what they show."
    if not (committed.exists() and rebuilt.exists()):
        return [f"{committed.name}: {'rebuilt but not committed' if rebuilt.exists() else 'committed but not rebuilt'}"]
    if committed.suffix == ".png":
        return different_pictures(committed, rebuilt)
    one, two = (readable(path) for path in (committed, rebuilt))
    return [
        f"{committed.name}: {line}" for line in difflib.unified_diff(one, two, "committed", "rebuilt", lineterm="", n=0)
    ]


def readable(path: Path) -> list[str]:
    "A file's lines; of a notebook, its sources (but for what it was called with) and the texts among its outputs."
    if path.suffix != ".ipynb":
        return path.read_text().splitlines()
    cells = json.loads(path.read_text())["cells"]
    texts = [source for cell in cells if not (source := "".join(cell["source"])).startswith("# Parameters\n")]
    for output in (output for cell in cells for output in cell.get("outputs", [])):
        texts += [
            "".join(content)
            for kind, content in (output.get("data", {}) | {"text": output.get("text", "")}).items()
            if kind != "image/png"
        ]
    return "\n".join(texts).splitlines()


def different_pictures(committed: Path, rebuilt: Path) -> list[str]:
    "At most one pixel in a thousand may differ, by other releases' anti-aliasing."
    import numpy as np
    from PIL import Image
    one, two = (np.asarray(Image.open(file).convert("RGB"), dtype=int) for file in (committed, rebuilt))
    same = one.shape == two.shape and (np.abs(one - two).max(axis=2) > 16).mean() <= 1e-3
    return [] if same else [f"{committed.name} shows something else than the committed one"]


def repeat() -> list[str]:
    """Runs of each experiment, picked at random, trained again (`07_experiments/24_repetition`): the start of one that
    lived, and in every third experiment one from start to end; where it is another, that of a second one."""
    experiments = sorted(folder.name for folder in (ROOT / "reports" / "runs").glob("*/"))
    with ProcessPoolExecutor(2, multiprocessing.get_context("spawn")) as pool:
        return sum(pool.map(repeated, experiments, [number % 3 for number in range(len(experiments))]), [])


def repeated(experiment: str, turn: int) -> list[str]:
    "What is wrong when runs of an experiment are trained again."
    from jem_nb.experiments.config import RunConfig
    from jem_nb.experiments.provenance import commit
    from jem_nb.experiments.records import collect
    from jem_nb.experiments.repetition import end_differences, start_differences, start_of, starts
    from jem_nb.experiments.run import run

    choice, living = random.Random(commit() + experiment), starts(experiment)  # the same pick for the same commit
    found = []
    for old in choice.sample(living, min(2, len(living))):
        config = RunConfig(**old["config"])
        different = start_differences(old, *start_of(config)) + [f"is {config.run_id}"] * (config.run_id != old["run_id"])
        print(f"{experiment}: run {old['run_id']} of {len(living)} begun again, {'differs' if different else 'the same'}")
        if not different:
            break
        found.append(f"{experiment}: run {old['run_id']} does not start as it did: {'; '.join(different[:5])}")
    found = found if len(found) > 1 else []
    # the judge of `generation` takes minutes, and its repetition is a start
    short = [old for old in living if old["seconds"] < 45 and "generation" not in old["config"].get("probes", ())]
    if not short or turn != int(commit()[:6], 16) % 3:
        return found
    wrong = []  # of each of two: rounding alone, between instruction sets, may decide whether or where one run ends
    for old in choice.sample(short, min(2, len(short))):
        root = tempfile.mkdtemp(dir=os.environ.get("CHECKS_FOLDER"))
        new = run(RunConfig(**old["config"]), experiment, root, threads=1)
        print(f"{experiment}: run {old['run_id']} again, {new['status']} after {new['iterations']} iterations")
        different = [f"is {new['status']}"] * (new["status"] != old["status"])
        different = different or end_differences(old, new, collect(experiment))
        if old.get("processor") == new.get("processor") is not None and old["history"] != new["history"]:
            return [*found, f"{experiment}: run {old['run_id']} differs in its digits, on the same processor"]
        if not different:
            return found
        wrong += [f"{experiment}: run {old['run_id']} does not end as it did: {line}" for line in different]
    return found + wrong


def control() -> list[str]:
    from jem_nb.experiments.presets import make_config
    from jem_nb.experiments.records import read_record, run_folder
    rate = make_config("cpu", "scenes").learning_rate
    configs = [make_config("cpu", "scenes", seed=seed, learning_rate=r) for seed in range(3) for r in (rate, rate / 10)]
    runs = [read_record(run_folder("regularization", config.run_id)) for config in configs]
    died = sum(run is not None and run["status"] == "diverged" for run in runs)
    print(f"control on scenes: {died} of {len(runs)} runs died, {runs.count(None)} were not run")
    return (
        []
        if None not in runs and 2 * died >= len(runs)
        else ["expected the control to run, and to die in at least half of its runs"]
    )


if __name__ == "__main__":
    name, *arguments = sys.argv[1:]
    found = globals()[name](*arguments)
    print("\n".join(found))
    sys.exit(bool(found))
