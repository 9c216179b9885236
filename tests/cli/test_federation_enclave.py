"""`aggregate = "tee"` with processes over TLS: coordinator, nodes and a simulated enclave, which is killed once."""

from __future__ import annotations

from pathlib import Path

import pytest

from cli.federation_processes import NAMES, Processes
from confide.tee.simulated import WARNING, measure_code

_POLICY = """\
[allow]
aggregates = ["tee"]

[limits]
require_privacy = false
hide_updates = false
smallest_cohort = 1

[attestation]
policy = "enclave.toml"
allow_simulated = {allows}

[data]
data_set = "breast-cancer"

[approval]
by = "policy"
"""


def simulated(folder: Path, *, measurement: str, allows: str = "true", rounds: int = 4, **more) -> Processes:
    """Return a federation with an enclave, whose nodes accept code of `measurement`."""
    made = Processes(folder, rounds=rounds, aggregate="tee", **more)
    made.enrol("vault", "helper")
    text = made.job_file.read_text()
    made.job_file.write_text(text.replace('"tee"\n', '"tee"\nattester = "simulated"\nhelper = "vault"\n'))
    (folder / "policy.toml").write_text(_POLICY.format(allows=allows))
    (folder / "enclave.toml").write_text(f'[simulated]\nmeasurements = ["{measurement}"]\n')
    return made


def enclave(made: Processes, *more: object):
    return made.run(
        "vault", "node", "--identity", made.folder / "vault", "--policy", made.folder / "policy.toml", *more
    )


@pytest.mark.slow
def test_a_run_goes_on_when_the_enclave_was_killed(tmp_path):
    with simulated(tmp_path, measurement=measure_code(), rounds=40, delay_seconds=0.01) as made:
        server = made.start()
        one = enclave(made, "--attester", "simulated")
        made.until_round(3)
        one.kill()
        enclave(made, "--attester", "simulated")
        assert server.ends() == 0
        assert WARNING.split(":")[0] in made.running["vault"].text()
        assert "everybody verifies it anew" in server.text()
        assert made.check()[-1] == set(NAMES)


def test_nodes_seal_nothing_to_other_code(tmp_path):
    with simulated(tmp_path, measurement="00" * 48) as made:
        server = made.start()
        enclave(made, "--attester", "simulated")
        assert server.ends() != 0
        made.running["north"].says(r"\[measurement\]")
        assert not made.lines("round")
        made.check_nothing_leaked()


def test_a_node_that_asked_for_no_simulation_refuses_the_job(tmp_path):
    with simulated(tmp_path, measurement=measure_code(), allows="false") as made:
        server = made.start()
        enclave(made, "--attester", "simulated")
        assert server.ends() != 0
        server.says("attestation.allow_simulated")
        assert not made.lines("round")
