import pytest

from renal_utils.progress import progress_bar


@pytest.mark.parametrize(("value", "shown"), [("1", False), ("0", True), ("", True), (None, True)])
def test_the_environment_switches_bars_off(monkeypatch, capsys, value, shown):
    if value is None:
        monkeypatch.delenv("TQDM_DISABLE", raising=False)
    else:
        monkeypatch.setenv("TQDM_DISABLE", value)
    assert list(progress_bar(range(3), desc="count")) == [0, 1, 2]
    assert ("count" in capsys.readouterr().err) is shown
