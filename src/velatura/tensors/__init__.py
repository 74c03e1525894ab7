"""Tensor files: opened as data, so that no code in them runs; written atomically.

open.py is the entry point and the file to open first; write.py writes. unpickler.py reads pickles without importing
anything, zip_archive.py and safetensors_files.py read the containers. docs/security.md lists the threats.
"""

from velatura.tensors.lazy import LazyTensors, apply_to, meta_tensors
from velatura.tensors.open import (
    DAMAGED_FILE_ERRORS,
    Contents,
    StateDict,
    StrPath,
    as_dict,
    as_list,
    open_meta,
    open_state_dict,
    open_tensors,
)
from velatura.tensors.torch_files import STATE_DICT_KEYS, is_training_entry, strip_wrapper_prefixes
from velatura.tensors.write import write_picture, write_safetensors, write_torch

__all__ = [
    "DAMAGED_FILE_ERRORS",
    "STATE_DICT_KEYS",
    "Contents",
    "LazyTensors",
    "StateDict",
    "StrPath",
    "apply_to",
    "as_dict",
    "as_list",
    "is_training_entry",
    "meta_tensors",
    "open_meta",
    "open_state_dict",
    "open_tensors",
    "strip_wrapper_prefixes",
    "write_picture",
    "write_safetensors",
    "write_torch",
]
