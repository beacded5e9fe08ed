"""Run the scripts that each showed a fault: `python .ci/faults.py ../shared/faults [NAME...]`. Each must exit with 0 now.

They name the modules of their day; here stands where those are today, and nothing else of a script is changed.
"""
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
MODULES = {
    "calibration": "evaluation.calibration", "callbacks": "training.save_and_resume", "checkpoint": "training.checkpoint",
    "cluster": "experiments.cluster", "configuration": "experiments.presets", "cost_model": "experiments.cost_model",
    "eurosat": "data.eurosat", "experiments": "experiments.sweep", "geotiff": "data.geotiff",
    "map_command": "maps.command", "maps": "maps.write_map", "parameters": "experiments.parameters",
    "records": "experiments.records", "runs": "experiments.run", "scenes": "data.scenes",
    "tile_description": "data.tile_description", "tiles": "data.tiles",
}
NAMES = {
    "import make_config, RunConfig": "import make_config; from jem_nb.experiments.config import RunConfig",
    "maps._assemble": "maps.assemble",
}
ELSEWHERE = {
    "07-site-writes-outside.py": "jem-site was removed", "11-site-killed.py": "jem-site was removed",
    "kill_each.py": "a test of the repository now, see nbs/12_whole_runs",
}


def adapted(text: str) -> str:
    "A script with today's names of modules."
    text = re.sub(rf"\bjem_nb\.({'|'.join(MODULES)})\b", lambda found: f"jem_nb.{MODULES[found[1]]}", text)
    for old, new in NAMES.items():
        text = text.replace(old, new)
    return text


def main(folder: Path, wanted: list[str]) -> int:
    with tempfile.TemporaryDirectory() as place:
        copy = Path(shutil.copytree(folder, Path(place) / "faults"))
        for path in copy.rglob("*.*"):
            if path.suffix in (".py", ".sh"):
                path.write_text(adapted(path.read_text()))
        environment = os.environ | {
            "PROJ": str(ROOT), "PY": sys.executable, "PYTHONPATH": str(ROOT), "JEM_ROOT": str(ROOT),
            "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1", "TMPDIR": place,
        }
        failed = 0
        for path in sorted(copy.glob("*/*.*")):
            if path.stem == "common" or path.suffix not in (".py", ".sh"):
                continue
            if path.name in ELSEWHERE:
                print(f"{path.parent.name}/{path.name}: {ELSEWHERE[path.name]}")
                continue
            if wanted and not any(name in str(path) for name in wanted):
                continue
            began = time.monotonic()
            command = ["bash" if path.suffix == ".sh" else sys.executable, path.name]
            ended = subprocess.run(command, cwd=path.parent, env=environment, capture_output=True, text=True)
            failed += bool(ended.returncode)
            print(f"{path.parent.name}/{path.name}: exit {ended.returncode} ({time.monotonic() - began:.0f} s)", flush=True)
            if ended.returncode:
                print("\n".join("    " + line for line in (ended.stdout + ended.stderr).splitlines()[-12:]))
    print(f"{failed} faults are there")
    return failed


if __name__ == "__main__":
    sys.exit(bool(main(Path(sys.argv[1]), sys.argv[2:])))
