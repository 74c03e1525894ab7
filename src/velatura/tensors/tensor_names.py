"""Names of tensors in files: those that no program writes are refused before anything is looked up by them."""

from __future__ import annotations

import re
import unicodedata

from velatura.files import is_path_outside

MAX_SHOWN_NAME_LENGTH = 60  # characters of a stranger's text in a message
PYTHON_ATTRIBUTE = re.compile(r"__\w+__")


def check_tensor_name(name: str) -> None:
    """Refuse a name that could be taken for something else: no name, control characters, a path, Python's own names.

    Args:
        name: Name of a tensor in a file; words between dots are names of modules.

    Raises:
        ValueError: The message continues "FILE ...".
    """
    if not name.strip():
        problem = "an empty name"
    elif any(unicodedata.category(letter) == "Cc" for letter in name):
        problem = "a name with control characters"
    elif is_path_outside(name):
        problem = "a path outside its folder for a name"
    elif any(PYTHON_ATTRIBUTE.fullmatch(word) for word in name.split(".")):
        problem = "a name that belongs to Python's own objects"
    else:
        return
    raise ValueError(f"has a tensor with {problem} ({name[:MAX_SHOWN_NAME_LENGTH]!r})")
