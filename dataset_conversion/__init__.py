"""Converters from data sets as downloaded to medkd's raw layout; one module per source, one shared writer."""

from __future__ import annotations

from dataset_conversion import acdc_h5 as acdc_h5
from dataset_conversion import brats as brats
from dataset_conversion import btcv as btcv
from dataset_conversion import cityscapes as cityscapes
from dataset_conversion import coco as coco
from dataset_conversion import dicom as dicom
from dataset_conversion import fracatlas as fracatlas
from dataset_conversion import grazpedwri as grazpedwri
from dataset_conversion import msd as msd
from dataset_conversion import nnunet_raw as nnunet_raw
from dataset_conversion import scans as scans
from dataset_conversion import synapse_slices as synapse_slices
from dataset_conversion import voc as voc
from dataset_conversion import word as word
from dataset_conversion import yolo as yolo
from dataset_conversion.convert import convert_dataset as convert_dataset
from dataset_conversion.registry import CONVERTERS as CONVERTERS
from dataset_conversion.registry import ConversionOptions as ConversionOptions
