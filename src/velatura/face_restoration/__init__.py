"""Restore faces by GFPGAN or CodeFormer, as A1111's "Restore faces" does, from the files that people have.

restore.py is the file to open first. read_files.py opens files; retinaface.py, gfpgan.py and codeformer.py have the
networks; detect.py finds faces, and align.py cuts them out and pastes them back.
"""

from velatura.face_restoration.read_files import (
    FaceRestorer,
    RetinaFaceDetector,
    detect_face_model,
    open_face_detector,
    open_face_restorer,
)
from velatura.face_restoration.restore import DEFAULT_FIDELITY, OnFace, RestoredImage, restore_face, restore_faces

__all__ = [
    "DEFAULT_FIDELITY",
    "FaceRestorer",
    "OnFace",
    "RestoredImage",
    "RetinaFaceDetector",
    "detect_face_model",
    "open_face_detector",
    "open_face_restorer",
    "restore_face",
    "restore_faces",
]
