"""``medkd_serve``: a model behind HTTP, with an upload page."""

from __future__ import annotations

import argparse
import socket
from collections.abc import Sequence
from pathlib import Path

from medkd.cli import common
from medkd.core.allocator import reuse_freed_memory
from medkd.core.errors import RunError


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of ``medkd_serve``; runs until it is stopped."""
    arguments = common.parser(
        "Serve a model for segmentation over HTTP: POST a NIfTI file or a zip of one DICOM series to /predict and get "
        "the label map; / is an upload page with a viewer of slices, /health and /metrics say how it does. The model "
        "is loaded once. There is no login: it listens on this machine alone, unless --host says otherwise.",
        "medkd_serve exported --port 8000",
    )
    arguments.add_argument("model", metavar="EXPORTED", type=Path, help="exported model (or any other model folder)")
    arguments.add_argument("--host", default="127.0.0.1", help="address to listen on (default: 127.0.0.1)")
    arguments.add_argument("--port", type=int, default=8000, help="default: 8000; 0 takes a free one")
    _add_limits(arguments)
    arguments.add_argument("--step-size", type=float, help="as for medkd_predict")
    arguments.add_argument(
        "--tta", dest="mirror", action=argparse.BooleanOptionalAction, default=None, help="as for medkd_predict"
    )
    common.add_engine_options(arguments)
    common.add_postprocessing(arguments)
    return common.run(_serve, arguments, argv)


def _add_limits(arguments: argparse.ArgumentParser) -> None:
    limits = arguments.add_argument_group("limits")
    limits.add_argument("--queue", type=common.positive, default=8, help="scans at a time, else 503 (default: 8)")
    limits.add_argument(
        "--upload-mib", type=common.positive, default=1024, metavar="N", help="largest request (default: 1024 MiB)"
    )
    limits.add_argument(
        "--voxels",
        type=common.positive,
        default=400,
        metavar="MILLIONS",
        help="largest scan, in its own and in the network's grid (default: 400 million)",
    )
    limits.add_argument(
        "--upload-seconds", type=common.positive, default=300, metavar="S", help="time of an upload (default: 300)"
    )


def _serve(options: argparse.Namespace) -> None:
    reuse_freed_memory()
    try:
        from medkd.serving import app, running
    except ImportError as error:
        raise RunError(f"medkd_serve needs the package {error.name}: pip install 'medkd[serve]'.") from error
    from medkd.inference.opening import open_predictor
    from medkd.models.base import open_model
    from medkd.serving.limits import MEBI, Limits

    limits = Limits(
        queue=options.queue,
        upload=options.upload_mib * MEBI,
        unpacked=4 * options.upload_mib * MEBI,
        voxels=options.voxels * 1_000_000,
        seconds=float(options.upload_seconds),
    )
    model = open_model(options.model, "segmentation")
    given = common.given(options, ("engine", "threads", "step_size"))
    predictor = open_predictor(model, mirror=options.mirror, postprocessing=options.postprocessing, **given)
    listener = running.listen(options.host, options.port)
    loopback = running.is_loopback(options.host)
    application = app.make_app(predictor, model.name, limits, hosts=app.LOOPBACK if loopback else ("*",))
    print(_told(model.name, listener, loopback), flush=True)
    running.serve(application, listener)
    print("stopped")


def _told(name: str, listener: socket.socket, loopback: bool) -> str:
    host, port = listener.getsockname()[:2]
    shown = f"[{host}]" if ":" in host else host
    warning = "" if loopback else "; whoever reaches this address can use it, there is no login"
    return f"{name} is served at http://{shown}:{port} (stop with Ctrl-C){warning}"


if __name__ == "__main__":
    raise SystemExit(main())
