"""OpenVINO's own files, converted from ONNX."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from .description import KEY
from .extras import import_extra


def write_openvino(path: Path, onnx_path: Path, text: str) -> None:
    """Convert an ONNX file; the weights, in float32, go beside `path`, NAME.xml, as NAME.bin."""
    openvino = import_extra("openvino")
    model = openvino.convert_model(str(onnx_path))
    model.set_rt_info(text, KEY)
    openvino.save_model(model, str(path), compress_to_fp16=False)


class OpenVinoModel:
    """A file under OpenVINO, on the CPU, in float32."""

    def __init__(self, path: Path | str, *, threads: int = 0, precision: str = "f32") -> None:
        """`threads`: 0 for as many as there are cores; `precision` of what is not quantised: "f32" or "bf16"."""
        openvino = import_extra("openvino")
        model = openvino.Core().read_model(str(path))
        info = model.get_rt_info()
        self.metadata: Mapping[str, str] = {KEY: str(info[KEY].value)} if KEY in info else {}
        settings: dict[str, Any] = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": precision}
        if threads:
            settings["INFERENCE_NUM_THREADS"] = threads
        self._compiled = openvino.compile_model(model, "CPU", settings)

    def __call__(self, images: np.ndarray) -> tuple[np.ndarray, ...]:
        """Outputs in their order for images uint8 (N, 3, H, W)."""
        return tuple(self._compiled(images).to_tuple())
