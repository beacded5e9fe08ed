# Read by JupyterLab when it is started in this folder: notebooks are saved without counts and other noise.
from nbdev.clean import clean_jupyter

c.ContentsManager.pre_save_hook = clean_jupyter  # noqa: F821
