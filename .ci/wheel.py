"""What a user has who installs a wheel, without a clone: `python .ci/wheel.py FOLDER [EuroSAT.zip]`.

Builds the wheel, installs it and what it asks for into an environment of its own, and works in an empty folder:
class folders of pictures, tiles of 13 float bands, a module of one's own; each is trained on and maps a GeoTIFF by
one command more. Then README's Python example, word for word.
"""
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
QUICK = ["--epochs", "2", "--set", "steps=2", "--set", "buffer_size=100", "--quiet"]

MAKE = '''
import sys
from pathlib import Path
import numpy as np
from PIL import Image
from rasterio.transform import from_origin
from jem_nb.data.geotiff import write_geotiff
from jem_nb.data.scene_layouts import SCENE_CLASSES
from jem_nb.data.scenes import make_scenes

scenes, labels, _ = make_scenes(200, 32, 0)
place = from_origin(565_000, 5_935_000, 10, 10)
for number, (scene, label) in enumerate(zip(scenes, labels)):
    name = SCENE_CLASSES[label].replace("/", " or ")
    for kind in ("pictures", "bands"):
        (Path(kind) / name).mkdir(parents=True, exist_ok=True)
    Image.fromarray(scene[:3].transpose(1, 2, 0)).save(f"pictures/{name}/{number}.png")
    noise = np.random.default_rng(number).normal(0, 0.01, (13, 32, 32))
    floats = (np.concatenate([scene, scene, scene, scene[:1]]) / 255 * 0.4 + noise).astype(np.float32)
    floats[:, 0, :2] = np.nan
    write_geotiff(Path(f"bands/{name}/{number}.tif"), floats, place, "EPSG:32632")
wide = np.concatenate([np.concatenate(list(scenes[4 * row : 4 * row + 4]), axis=2) for row in range(4)], axis=1)
write_geotiff(Path("survey.tif"), wide[:3], place, "EPSG:32632")
floats = (np.concatenate([wide, wide, wide, wide[:1]]) / 255 * 0.4).astype(np.float32)
write_geotiff(Path("survey13.tif"), floats, place, "EPSG:32632")
Path("mine.py").write_text("""
from torch import manual_seed, nn
def build(bands, classes):
    manual_seed(0)
    return nn.Sequential(nn.Conv2d(bands, 16, 3, 2, 1), nn.BatchNorm2d(16), nn.SiLU(), nn.Conv2d(16, 32, 3, 2, 1),
                         nn.SiLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, classes))
""")
'''


def installed(work: Path) -> Path:
    "An environment that has the wheel, and what it asks for, and nothing else; the folder of its commands."
    wheels = work / "wheels"
    copy = shutil.copytree(ROOT, work / "source", ignore=shutil.ignore_patterns(".git", ".venv", "nbs", "reports"))
    subprocess.run([sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", str(wheels), str(copy)], check=True)
    (wheel,) = wheels.glob("*.whl")
    subprocess.run([sys.executable, "-m", "venv", str(work / "venv")], check=True)
    commands = work / "venv" / "bin"
    constraints = ["-c", str(ROOT / "constraints.txt")]
    subprocess.run([commands / "python", "-m", "pip", "install", "-q", *constraints, str(wheel)], check=True)
    return commands


def unpacked(archive: str, folder: Path, most: int = 40) -> None:
    "The first images of each class of EuroSAT, in a folder for each."
    counts: dict[str, int] = {}
    with zipfile.ZipFile(archive) as file:
        for name in sorted(file.namelist()):
            kind = Path(name).parent.name
            if name.endswith(".jpg") and counts.setdefault(kind, 0) < most:
                counts[kind] += 1
                (folder / kind).mkdir(parents=True, exist_ok=True)
                with file.open(name) as image, open(folder / kind / Path(name).name, "wb") as copy:
                    shutil.copyfileobj(image, copy)


def main() -> int:
    work = Path(sys.argv[1]).resolve() / "wheel"
    here = work / "empty"
    here.mkdir(parents=True)
    commands = installed(work)
    environment = {"PATH": f"{commands}:/usr/bin:/bin", "HOME": str(work), "OMP_NUM_THREADS": "1", "LANG": "C.UTF-8"}

    def do(*command: str) -> str:
        print("$", *(word if len(word) < 100 else "..." for word in command), flush=True)
        program = commands / command[0]
        done = subprocess.run([program, *command[1:]], cwd=here, env=environment, stdout=subprocess.PIPE, text=True,
                              check=True)
        print(done.stdout, flush=True)
        return done.stdout

    do("python", "-c", MAKE)
    trained = [("pictures", "survey.tif", []), ("bands", "survey13.tif", []),
               ("pictures", "survey.tif", ["--name", "own", "--network", "mine.py:build"])]
    if len(sys.argv) > 2:
        unpacked(sys.argv[2], here / "eurosat_folders")
        trained.append(("eurosat_folders", "survey.tif", []))
    for number, (data, raster, options) in enumerate(trained):
        said = do("jem-train", data, *QUICK, *options)
        run = re.search(r"^run: (.*)$", said, re.MULTILINE)[1]
        own = options[-2:] if options else []
        do("jem-map", run, raster, f"map{number}.tif", "--any-resolution", "--quiet", *own)
        page = (here / run / "report.html").read_text()
        assert "What to do next" in page and (here / f"map{number}.tif").stat().st_size > 0
    listed = do("jem-runs")
    assert listed.count("finished") >= len(trained), listed
    do("jem-describe", "bands", "bands.json")
    (example,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    do("python", "-c", example)
    written = [path for path in (work / ".cache").rglob("*") if path.is_file()]
    assert written, "expected the cache in the user's cache folder"
    return 0


if __name__ == "__main__":
    sys.exit(main())
