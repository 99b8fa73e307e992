# Importing a module enters its method into METHODS.
from medkd.distillation import acf, acf_bckd, bckd, cwd, kd, none  # noqa: F401
from medkd.distillation.base import METHODS, Context, Method, Needs, build_method, parameters_of
from medkd.distillation.capture import Capture
from medkd.distillation.distiller import Distiller

__all__ = ["METHODS", "Capture", "Context", "Distiller", "Method", "Needs", "build_method", "parameters_of"]
