"""A YOLO student as ONNX: the boxes, scores and suppression of the detector itself."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from medkd.cli.export import main
from medkd.core.checkpoint import save_checkpoint
from medkd.core.errors import RunError
from medkd.core.files import read_json, write_json
from medkd.exporting.detectors import export_detector
from medkd.runtime.engines import open_engine


@pytest.mark.slow
def test_a_yolo_student_finds_the_same_boxes_in_onnx(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for package in ("ultralytics", "onnxscript", "onnxruntime"):
        pytest.importorskip(package)
    from tests.detection.yolo.builders import SIZE, calibrated

    detector = calibrated()
    save_checkpoint(tmp_path / "theirs" / "best.pt", {"network": detector.state_dict()})
    stated = {"network": "yolov8n", "categories": ["fracture"], "train": ["case_00"], "image_size": SIZE}
    write_json(tmp_path / "theirs" / "teacher.json", stated)
    assert main([str(tmp_path / "theirs" / "best.pt"), "-o", str(tmp_path / "out")]) == 0
    assert "boxes differ by up to" in capsys.readouterr().out
    described = read_json(tmp_path / "out" / "detection.json")
    assert described["categories"] == ["fracture"] and described["image_size"] == SIZE
    images = torch.rand(3, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(3))
    boxes, scores, selected = open_engine(tmp_path / "out" / "model.onnx", every=True)(images.numpy())
    for image, expected in enumerate(detector.detect(images)):
        kept = selected[selected[:, 0] == image]
        found = np.array(sorted(scores[image, category, box] for _, category, box in kept))[::-1]
        count = min(len(found), len(expected.scores), 50)  # rounding may change the order of the faintest
        assert count > 5
        assert np.allclose(found[:count], expected.scores[:count].numpy(), atol=1e-4)
        best = kept[np.argmax([scores[image, category, box] for _, category, box in kept])]
        inside = np.clip(boxes[image, best[2]], 0, SIZE)
        assert np.allclose(inside, expected.boxes[0].numpy(), atol=0.05)


def test_options_of_segmentation_and_full_folders_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from tests.detection import stub
    from tests.detection.builders import make_dataset

    run = stub.make_run(tmp_path, make_dataset(tmp_path, images=3))
    assert main([str(run), "-o", str(tmp_path / "out"), "--int8"]) == 1
    assert "--int8 and --scan are for segmentation" in capsys.readouterr().err
    assert main([str(run), "-o", str(tmp_path / "out"), "--format", "openvino"]) == 1
    assert "does detection, expected a model for segmentation" in capsys.readouterr().err
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").touch()
    with pytest.raises(RunError, match="is in use and holds no exported model"):
        export_detector(run, tmp_path / "mine")
