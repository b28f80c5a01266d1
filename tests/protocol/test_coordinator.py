"""Tests of the wire between engines and the coordinator: its generated stubs, and bytes that mean nothing."""

from __future__ import annotations

import random
import subprocess
import sys
from pathlib import Path

from saga.protocol import METHOD, SERVICE, read_from_engine, read_to_engine, write
from saga.protocol.coordinator_pb2 import DESCRIPTOR, FromEngine, ToEngine

SOURCE = Path(__file__).resolve().parents[2] / "src"


def test_the_committed_stubs_are_those_of_the_proto(tmp_path):
    """Generated anew they are the same, byte for byte (else: `make protocol`)."""
    command = [sys.executable, "-m", "grpc_tools.protoc", "-I", str(SOURCE)]
    targets = [f"--python_out={tmp_path}", f"--pyi_out={tmp_path}", str(SOURCE / "saga/protocol/coordinator.proto")]
    subprocess.run([*command, *targets], check=True, timeout=60)
    for name in ("coordinator_pb2.py", "coordinator_pb2.pyi"):
        assert (tmp_path / "saga/protocol" / name).read_bytes() == (SOURCE / "saga/protocol" / name).read_bytes()


def test_the_service_is_the_one_of_the_proto():
    """Both sides name it by hand."""
    service = DESCRIPTOR.services_by_name["Coordinator"]
    assert (service.full_name, [method.name for method in service.methods]) == (SERVICE, [METHOD])


def test_bytes_that_mean_nothing_are_a_message_that_says_nothing():
    """No bytes end a stream or raise."""
    chance = random.Random(1)
    for _ in range(300):
        data = chance.randbytes(chance.randrange(64))
        assert read_from_engine(data).WhichOneof("message") in (None, "hello", "report", "answer")
        assert read_to_engine(data).WhichOneof("message") in (None, "welcome", "directive")
    assert read_from_engine(b"\xff\xff").WhichOneof("message") is None


def test_a_newer_sides_unknown_fields_are_ignored():
    """Field 15 is of no message yet."""
    said = ToEngine()
    said.welcome.report_every_s = 0.5
    assert read_to_engine(write(said) + b"\x7a\x03new").welcome.report_every_s == 0.5
    assert not FromEngine().WhichOneof("message")
