"""Converters from data sets as downloaded to medkd's raw layout; one module per source, one shared writer."""

from __future__ import annotations

from dataset_conversion import msd as msd
from dataset_conversion.api import convert_dataset as convert_dataset
from dataset_conversion.registry import CONVERTERS as CONVERTERS
from dataset_conversion.registry import ConversionOptions as ConversionOptions
