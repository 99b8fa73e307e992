from medkd.distillation import cwd, kd, none
from medkd.distillation.base import METHODS, Context, Method, Needs, build_method, parameters_of
from medkd.distillation.capture import Capture
from medkd.distillation.distiller import Distiller

__all__ = ["METHODS", "Capture", "Context", "Distiller", "Method", "Needs", "build_method", "cwd", "kd", "none", "parameters_of"]
