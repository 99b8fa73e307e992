# Importing a module enters its method into METHODS.
from medkd.distillation import (  # noqa: F401
    acf,
    acf_bckd,
    at,
    bckd,
    cakd,
    cirkd,
    crosskd,
    cwd,
    dist,
    dkd,
    dml,
    emkd,
    ensemble,
    fourier,
    freekd,
    ifvd,
    kd,
    maskd,
    mimic,
    nkd,
    none,
    pkd,
    reviewkd,
    rkd,
    sfd,
    skd,
)
from medkd.distillation.base import METHODS, Context, Method, Needs, build_method, parameters_of
from medkd.distillation.capture import Capture
from medkd.distillation.distiller import Distiller

__all__ = ["METHODS", "Capture", "Context", "Distiller", "Method", "Needs", "build_method", "parameters_of"]
