"""Gamma and alpha over decoding temperatures, for every requested backend, acceptance rule and draft length."""


def test_temperature_grid(measure) -> None:
    measure()
