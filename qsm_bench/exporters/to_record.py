"""A record: the runs of an experiment as data to publish. ``qsm_bench/record.py`` reads it.

Agents are in it as a whole or not at all: one is in it if its runs on every task of the experiment
have ended. Checkpoints and logs are left out, and so is what ``exporters.places`` finds of the
machine of who made it.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

from qsm_bench.comparable import protocol_differences, protocol_hash
from qsm_bench.errors import UserError
from qsm_bench.exporters.folder import Output
from qsm_bench.exporters.places import command_without_places, text_without_places
from qsm_bench.files import read
from qsm_bench.job_folder import TABLE_LIMIT, JobFolder
from qsm_bench.manifest import FORMAT, Manifest
from qsm_bench.merging import jobs_of
from qsm_bench.protocol import Protocol
from qsm_bench.record import ENDED, UNKNOWN, Record
from qsm_bench.record_jobs import fault_of_jobs, span_of_jobs
from qsm_bench.results import Results
from qsm_bench.statistics.selection import agents_of, tasks_of
from qsm_bench.store import EXPERIMENT_FILE, RECORD_FILE, ExperimentStore


def outputs(results: Results, who: str) -> list[Output]:
    """The files of the record. Raises UserError if no agent's runs have ended on every task."""
    agents = whole_agents(results)
    if not agents:
        why = "no agent's runs have ended on every task"
        if results.damaged:
            why = f"no agent is whole: {results.damaged[0].fault}"
        raise UserError(f"{results.name} cannot be a record yet: {why}")
    protocol = _common_protocol([c for c in results.cells if c["agent"] in agents])
    store = ExperimentStore(results.root, results.name)
    folders = [folder for folder in store.job_folders() if folder.agent in agents]
    jobs = [folder.read_manifest() for folder in folders]
    if fault := fault_of_jobs(jobs, results.evaluations):
        raise UserError(f"{results.name} cannot be a record: {fault}")
    files = {EXPERIMENT_FILE: _experiment(results.experiment, agents)}
    for folder in folders:
        inside = folder.path.relative_to(store.folder).as_posix()
        files |= {f"{inside}/{name}": content for name, content in _files(folder)}
    began, ended = span_of_jobs(jobs)
    record = Record(
        name=results.name,
        who=who,
        began=began,
        ended=ended,
        commits=tuple(dict.fromkeys(s.commit or UNKNOWN for job in jobs for s in job.stretches)),
        agents=agents,
        tasks=tuple(tasks_of(results)),
        protocol=protocol,
        protocol_hash=protocol_hash(protocol),
        files={path: hashlib.sha256(content).hexdigest() for path, content in files.items()},
    )
    files[RECORD_FILE] = _json(record.model_dump(mode="json"))
    return [_output(path, content) for path, content in files.items()]


def whole_agents(results: Results) -> dict[str, tuple[int, ...]]:
    """The agents whose runs have ended on every task, each with its seeds, equal on each task."""
    damaged = {job.agent for job in results.damaged}
    whole = {}
    for agent in agents_of(results):
        cells = [cell for cell in results.cells if cell["agent"] == agent]
        seeds = {tuple(sorted(cell["seeds"])) for cell in cells}
        ended = all(job["status"] in ENDED for cell in cells for job in jobs_of(cell))
        everywhere = len(cells) == len(tasks_of(results))
        if agent not in damaged and ended and everywhere and len(seeds) == 1:
            whole[agent] = next(iter(seeds))
    return whole


def left_out(results: Results) -> list[str]:
    """A line for each agent of which the record has nothing."""
    whole = whole_agents(results)
    return [
        f"left out: {agent}: its runs have not ended with the same seeds on every task"
        for agent in agents_of(results)
        if agent not in whole
    ]


def _common_protocol(cells: Sequence[Mapping[str, Any]]) -> Protocol:
    """The protocol of all cells. Raises UserError if two differ, be it by their length alone."""
    first, *others = [Protocol(**cell["protocol"]) for cell in cells]
    for cell, other in zip(cells[1:], others, strict=True):
        lengths = {"steps": (first.steps, other.steps)} if first.steps != other.steps else {}
        for name, (one, another) in (protocol_differences(first, other) | lengths).items():
            raise UserError(
                f"a record has one protocol, and {name} is {one} for {cells[0]['agent']} on "
                f"{cells[0]['task']} and {another} for {cell['agent']} on {cell['task']}"
            )
    return first


def _experiment(asked: Mapping[str, Any], agents: Mapping[str, Any]) -> bytes:
    """``experiment.json`` with the agents that are in the record."""
    command = command_without_places(str(asked.get("command", "")))
    return _json({**asked, "format": FORMAT, "agents": list(agents), "command": command})


def _files(folder: JobFolder) -> Iterator[tuple[str, bytes]]:
    """The manifest and the tables of a job."""
    manifest = _published(folder.read_manifest())
    yield folder.manifest_file.name, (manifest.model_dump_json(indent=2) + "\n").encode()
    yield from ((file.name, read(file, TABLE_LIMIT)) for file in folder.tables if file.exists())


def _published(manifest: Manifest) -> Manifest:
    """The manifest without a log, and without places on somebody's machine."""
    changes: dict[str, Any] = {
        "log_tail": (),
        "warnings": tuple(map(text_without_places, manifest.warnings)),
        "stretches": tuple(
            stretch.model_copy(update={"command": command_without_places(stretch.command)})
            for stretch in manifest.stretches
        ),
        "failed_seeds": {
            seed: fault.model_copy(update={"reason": text_without_places(fault.reason)})
            for seed, fault in manifest.failed_seeds.items()
        },
    }
    for name in ("reason", "retried"):
        text = getattr(manifest, name)
        changes[name] = text and text_without_places(text)
    return manifest.model_copy(update=changes)


def _output(path: str, content: bytes) -> Output:
    return Output(path, hashlib.sha256(content).hexdigest(), partial(bytes, content))


def _json(content: Mapping[str, Any]) -> bytes:
    return (json.dumps(content, indent=2) + "\n").encode()
