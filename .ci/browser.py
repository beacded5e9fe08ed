"""What a person sees in headless Chromium: JupyterLab (`python .ci/browser.py lab FOLDER`), and a run's report (`... report
FOLDER`); pictures go to FOLDER."""
import os
import secrets
import shutil
import socket
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path
from urllib.request import urlopen

from checks import ROOT, copy_of_repository
from playwright.sync_api import Page, sync_playwright

# of every cell: whether it waits or runs, and what went wrong
STATE = """() => {
  const panel = window.jupyterapp.shell.currentWidget;
  const cells = [...panel.content.model.cells].filter(cell => cell.type === 'code');
  const outputs = cells.flatMap(cell => Array.from({length: cell.outputs.length}, (_, i) => cell.outputs.get(i)));
  return {path: panel.context.path, kernel: panel.sessionContext.session?.kernel?.status, cells: cells.length,
          run: cells.filter(cell => cell.executionCount !== null).length,
          waiting: cells.filter(cell => cell.executionState && cell.executionState !== 'idle').length,
          errors: outputs.filter(output => output.type === 'error').map(output => JSON.stringify(output.toJSON()))};
}"""
# pictures and widgets that reach beyond the right edge of the notebook
TOO_WIDE = """() => [...document.querySelectorAll('.jp-OutputArea-output img, .jp-OutputArea-output .widget-box')]
  .filter(found => found.getBoundingClientRect().width > 1
    && found.getBoundingClientRect().right > found.closest('.jp-Notebook').getBoundingClientRect().right + 1)
  .map(found => found.outerHTML.slice(0, 120))"""


@contextmanager
def chromium():
    browser = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=browser, args=["--no-sandbox"] if os.geteuid() == 0 else [])
        yield opened
        opened.close()


@contextmanager
def jupyterlab(folder: Path):
    "JupyterLab on loopback with a token of its own; the address to open notebooks at."
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    token, home = secrets.token_hex(16), folder.parent / "home"
    news = home / "settings" / "@jupyterlab" / "apputils-extension" / "notification.jupyterlab-settings"
    news.parent.mkdir(parents=True)
    news.write_text('{"fetchNews": "false"}')  # nobody is here to answer whether to ask for them
    places = {
        "JUPYTER_CONFIG_DIR": str(home / "config"),
        "JUPYTERLAB_SETTINGS_DIR": str(home / "settings"),
        "JUPYTERLAB_WORKSPACES_DIR": str(home / "workspaces"),
        "JEM_ROOT": str(folder),
    }
    # nobody's own settings
    environment = {name: value for name, value in os.environ.items() if name != "IN_TEST"} | places
    command = [
        sys.executable,
        "-m",
        "jupyterlab",
        "--no-browser",
        "--allow-root",
        "--ServerApp.ip=127.0.0.1",
        f"--ServerApp.port={port}",
        f"--IdentityProvider.token={token}",
        f"--ServerApp.root_dir={folder}",
        "--LabApp.expose_app_in_browser=True",
        "--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate",
    ]
    log = open(folder.parent / "jupyterlab.log", "w")  # noqa: SIM115, open as long as the server
    server = subprocess.Popen(command, cwd=folder, stdout=log, stderr=log, env=environment)
    try:
        wait(lambda: answers(f"http://127.0.0.1:{port}/api?token={token}"), 60, "JupyterLab to start")
        yield f"http://127.0.0.1:{port}/lab/tree/{{}}?token={token}&reset"
    finally:
        server.terminate()
        server.wait(30)
        log.close()


def answers(address: str) -> bool:
    try:
        return urlopen(address, timeout=5).status == 200  # noqa: S310, our own server
    except OSError:
        return False


def wait(condition, seconds: float, what: str) -> None:
    began = time.monotonic()
    while not condition():
        if time.monotonic() - began > seconds:
            raise TimeoutError(f"waited {seconds:.0f} s for {what}")
        time.sleep(0.25)


def run_all(page: Page, address: str, name: str, seconds: float = 300) -> list[str]:
    "Open a notebook and run all its cells from the menu, as a person does; what went wrong."
    page.goto(address.format(f"nbs/{name}.ipynb"))
    page.wait_for_function(
        "() => window.jupyterapp?.shell.currentWidget?.sessionContext?.session?.kernel", timeout=60_000
    )
    wait(lambda: page.evaluate(STATE)["kernel"] == "idle", 60, f"{name}: its kernel")
    page.get_by_role("menuitem", name="Run", exact=True).click()
    page.locator("#jp-mainmenu-run").get_by_text("Run All Cells", exact=True).click()
    began = time.monotonic()
    wait(lambda: finished(page.evaluate(STATE)), seconds, f"{name}: all cells")
    state = page.evaluate(STATE)
    print(f"{name}: {state['run']} of {state['cells']} cells run in {time.monotonic() - began:.0f} s")
    return [f"{name}: {error[:600]}" for error in state["errors"]]


def finished(state: dict) -> bool:
    return bool(state["errors"]) or (
        state["run"] == state["cells"] and not state["waiting"] and state["kernel"] == "idle"
    )


def looked_at(page: Page, name: str, folder: Path) -> list[str]:
    "Pictures of a notebook in both themes, part by part; what does not fit at this width."
    problems = []
    for theme in ("Light", "Dark"):
        page.evaluate(
            f"() => window.jupyterapp.commands.execute('apputils:change-theme', {{theme: 'JupyterLab {theme}'}})"
        )
        page.wait_for_timeout(1500)
        notebook = page.locator(".jp-WindowedPanel-outer").last
        height, whole = notebook.evaluate("panel => [panel.clientHeight, panel.scrollHeight]")
        for number, top in enumerate(range(0, min(int(whole), 12 * int(height)), int(height))):
            notebook.evaluate(f"panel => {{ panel.scrollTop = {top}; }}")
            page.wait_for_timeout(300)
            problems += [f"{name}: wider than the page: {found}" for found in page.evaluate(TOO_WIDE)]
            page.screenshot(path=folder / f"{name}_{theme.lower()}_{number:02d}.png")
    page.evaluate("() => window.jupyterapp.commands.execute('apputils:change-theme', {theme: 'JupyterLab Light'})")
    return sorted(set(problems))


def panel_with(page: Page, text: str):
    "The panel of explore.ipynb that has a control of this name."
    return (
        page.locator(".jp-OutputArea-output .widget-vbox")
        .filter(has=page.locator(".widget-label", has_text=text))
        .first
    )


def changed(panel, act, seconds: float, what: str) -> list[str]:
    "Whether a panel shows another picture after something was done to it."
    before = panel.locator("img").first.get_attribute("src")
    act()
    try:
        wait(lambda: panel.locator("img").first.get_attribute("src") != before, seconds, what)
    except TimeoutError as error:
        return [f"explore: {error}"]
    return []


def react(page: Page) -> list[str]:
    "Do to each panel what a person would."
    problems = []
    training = panel_with(page, "alpha")
    training.scroll_into_view_if_needed()
    training.get_by_role("button", name="Train").click()
    died = training.get_by_text("died in iteration")
    try:
        died.wait_for(timeout=30_000)
        print("training:", died.inner_text())
    except Exception as error:  # noqa: BLE001, whatever the browser says
        problems.append(f"explore: a model without a regulariser did not die: {error}")
    for control, option in (("order", "worst errors"), ("run", None), ("experiment", "regularization")):
        panel = panel_with(page, control)
        panel.scroll_into_view_if_needed()
        chosen = panel.locator("select").nth(1 if control == "run" else 0)
        problems += changed(
            panel,
            lambda chosen=chosen, option=option: (
                chosen.select_option(option) if option else chosen.select_option(index=3)
            ),
            10,
            f"another picture after {control}",
        )
    landscape = panel_with(page, "to noise")
    landscape.scroll_into_view_if_needed()
    handle = landscape.locator(".noUi-handle").nth(3)
    problems += changed(
        landscape,
        lambda: (handle.focus(), page.keyboard.press("ArrowUp"), page.keyboard.press("ArrowUp")),
        10,
        "another picture on the way to noise",
    )
    chains = panel_with(page, "step size")
    chains.scroll_into_view_if_needed()
    problems += changed(chains, lambda: chains.get_by_role("button", name="Walk").click(), 30, "chains to walk")
    return problems


def lab(folder: str, *names: str) -> list[str]:
    copy, pictures, problems = copy_of_repository(), Path(folder), []
    pictures.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(copy / "reports" / "runs")
    # with what README's experiment command left there
    (copy / "reports" / "runs").symlink_to(ROOT / "reports" / "runs")
    with jupyterlab(copy) as address, chromium() as browser:
        page = browser.new_page(viewport={"width": 1280, "height": 900})
        for name in names or ("index", "exp_regularization", "explore"):
            problems += run_all(page, address, name, 900)
            problems += react(page) if name == "explore" else []
            problems += looked_at(page, name, pictures)
    return problems


def report(folder: str) -> list[str]:
    "The page of a small run, as a person opens it: nothing is loaded, refused or too wide, and every picture is shown."
    from jem_nb.experiments.presets import make_config
    from jem_nb.experiments.records import run_folder
    from jem_nb.experiments.run import run
    from jem_nb.reporting.run_report import write_report

    pictures, problems = Path(folder), []
    pictures.mkdir(parents=True, exist_ok=True)
    with chromium() as browser:
        for dataset, width in (("scenes", 1280), ("scene_maps", 1280), ("scenes", 400)):
            config = make_config("smoke", dataset)
            run(config, dataset, pictures, report=True)
            page, said, asked = browser.new_page(viewport={"width": width, "height": 900}), [], []
            page.on("console", lambda message, said=said: said.append(message.text))
            page.on("request", lambda request, asked=asked: asked.append(request.url))
            page.goto(write_report(run_folder(dataset, config.run_id, pictures)).absolute().as_uri())
            wide = page.evaluate("() => document.documentElement.scrollWidth > window.innerWidth")
            broken = page.evaluate("() => [...document.images].filter(image => !image.naturalWidth).length")
            other = [url[:80] for url in asked if not url.startswith(("file:", "data:"))]
            found = {"says": said, "asks for": other, "is wider than the window": wide, "broken pictures": broken}
            problems += [f"{dataset} at {width}: {what} {value}" for what, value in found.items() if value]
            page.screenshot(path=pictures / f"report_{dataset}_{width}.png", full_page=True)
    return problems


if __name__ == "__main__":
    found = {"lab": lab, "report": report}[sys.argv[1]](*sys.argv[2:])
    print("\n".join(found))
    sys.exit(bool(found))
