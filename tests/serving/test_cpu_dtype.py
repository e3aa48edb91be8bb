"""A CPU without fast bfloat16 computes in float32; every other machine in the model's own format."""

from pathlib import Path

import pytest

from serving.cpu_dtype import cpu_dtype


@pytest.mark.parametrize(
    ("cpuinfo", "dtype"),
    [
        ("vendor_id\t: AuthenticAMD\nflags\t\t: fpu sse2 avx avx2 fma\n", "float32"),
        ("flags\t\t: fpu avx2 avx512f avx512dq avx512bw avx512vl\n", None),
        ("flags\t\t: fpu avx512bw avx512_bf16 amx_bf16\n", None),
        ("processor\t: 0\nFeatures\t: fp asimd bf16\n", None),
        ("", None),
    ],
)
def test_float32_below_avx_512(tmp_path: Path, cpuinfo: str, dtype: str | None) -> None:
    path = tmp_path / "cpuinfo"
    path.write_text(cpuinfo)
    assert cpu_dtype(path) == dtype


def test_a_machine_that_does_not_say_computes_in_the_models_own_format(tmp_path: Path) -> None:
    assert cpu_dtype(tmp_path / "none") is None
