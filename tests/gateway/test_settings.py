"""The environment's names are what the outside relies on."""

import pytest
from pydantic import ValidationError

from gateway.settings import GatewaySettings


def test_environment_names(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TAAS_GATEWAY_PORT", "8123")
    monkeypatch.setenv("TAAS_GATEWAY_PROCESSES", "3")
    monkeypatch.setenv("TAAS_HOME", "/somewhere")
    monkeypatch.setenv("TAAS_SERVICE_KEY", "secret")
    monkeypatch.setenv("TAAS_DRAIN_S", "7")
    settings = GatewaySettings()
    assert (settings.port, settings.processes, settings.drain_s) == (8123, 3, 7.0)
    assert str(settings.journal_path) == "/somewhere/journal"
    assert settings.service_key.get_secret_value() == "secret"
    assert "secret" not in repr(settings)


def test_options_win_over_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TAAS_GATEWAY_PORT", "8123")
    assert GatewaySettings(port=8124).port == 8124


def test_it_listens_on_loopback_unless_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TAAS_GATEWAY_HOST", raising=False)
    assert GatewaySettings().host == "127.0.0.1"


def test_each_process_has_a_metrics_port_of_its_own_and_0_leaves_them_all_open() -> None:
    assert GatewaySettings().metrics_ports == [9101]
    assert GatewaySettings(processes=3).metrics_ports == [9101, 9102, 9103]
    assert GatewaySettings(processes=3, metrics_port=0).metrics_ports == [0, 0, 0]
    assert GatewaySettings(processes=256, metrics_port=65_280).metrics_ports[-1] == 65_535
    with pytest.raises(ValidationError, match="metrics_port"):
        GatewaySettings(metrics_port=65_281)


def test_settings_do_not_change() -> None:
    with pytest.raises(ValidationError):
        GatewaySettings().port = 1  # type: ignore[misc]


def test_every_setting_is_described() -> None:
    assert all(field.description for field in GatewaySettings.model_fields.values())
