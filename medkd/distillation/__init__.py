# Importing a module enters its method into METHODS.
from medkd.distillation import none  # noqa: F401
from medkd.distillation.base import METHODS, Context, Method, Needs, Variant
from medkd.distillation.boundaries import acf, acf_bckd, bckd  # noqa: F401
from medkd.distillation.build import build_method, parameters_of
from medkd.distillation.capture import Capture
from medkd.distillation.distiller import Distiller
from medkd.distillation.features import at, crosskd, dcd, fourier, mimic, pkd, recokd, reviewkd, sfd  # noqa: F401
from medkd.distillation.outputs import cakd, cwd, dist, dkd, dml, ensemble, kd, nkd  # noqa: F401
from medkd.distillation.prompts import freekd, maskd  # noqa: F401
from medkd.distillation.relations import cirkd, emkd, ifvd, rkd, skd  # noqa: F401

__all__ = ["METHODS", "Capture", "Context", "Distiller", "Method", "Needs", "Variant", "build_method", "parameters_of"]
