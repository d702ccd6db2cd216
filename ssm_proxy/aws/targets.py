"""What a session can go to, and how people name it.

Ids go to the service as they are: ``i-…``, ``mi-…``, ``ecs:CLUSTER_TASK_RUNTIME``, and whatever else an agent was
configured to call itself. ``ecs:CLUSTER/SERVICE-OR-TASK[/CONTAINER]`` is for people: ECS is asked what that is.

Source: docs/PROTOCOL.md section 1.2; the public API reference of ECS for ListTasks and DescribeTasks, and its developer
guide for ECS Exec (enableExecuteCommand, the managed agent ExecuteCommandAgent).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any, Final, NamedTuple

from ssm_proxy.errors import TargetAmbiguous, TargetError, TargetNotFound

EcsCall = Callable[[str, Mapping[str, Any]], Mapping[str, Any]]
"""Calls an operation of ECS by its name; raises an error of ours."""

_ECS: Final = "ecs:"
_LONGEST: Final = 400
_NAME: Final = r"[A-Za-z0-9_-]{1,255}"
_ECS_NAME: Final = re.compile(rf"ecs:({_NAME})/({_NAME})(?:/({_NAME}))?", re.ASCII)
_TASK_ID: Final = re.compile(r"[0-9a-f]{32}|[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}", re.ASCII)
_AGENT: Final = "ExecuteCommandAgent"
_LARGEST_PAGE: Final = 100
"""What ListTasks gives, and DescribeTasks takes, at once."""


class _Name(NamedTuple):
    cluster: str
    task: str
    """Name of a service, or id of a task."""
    container: str | None


def resolve_target(text: str, call_ecs: EcsCall, notify: Callable[[str], None]) -> str:
    """Give the id that StartSession takes.

    Args:
        text: as the user wrote it.
        call_ecs: asked only for ``ecs:`` names with a slash.
        notify: told which of several tasks of a service was taken: the newest.

    Raises:
        TargetError: the text cannot name anything.
        TargetNotFound: there is no such task or container, or it was not made for sessions.
        TargetAmbiguous: the task has several containers, and none was named.
    """
    if not 1 <= len(text) <= _LONGEST or not text.isprintable():
        raise TargetError(
            f"{text[:_LONGEST]!r} is not the name of a target" if text else "the target is empty",
            cause=f"it is 1 to {_LONGEST} printable characters long",
            hint="an example: i-0123456789abcdef0",
        )
    if not text.startswith(_ECS) or "/" not in text:
        return text
    match = _ECS_NAME.fullmatch(text)
    if match is None:
        raise TargetError(
            f"'{text}' does not name a container of ECS",
            hint="write ecs:CLUSTER/SERVICE, ecs:CLUSTER/TASK-ID, or either with /CONTAINER behind",
        )
    name = _Name(*match.groups())
    task = _find_task(text, name, call_ecs, notify)
    container = _choose_container(text, name, task)
    return f"{_ECS}{name.cluster}_{_task_id(task)}_{container['runtimeId']}"


def _find_task(text: str, name: _Name, call_ecs: EcsCall, notify: Callable[[str], None]) -> Mapping[str, Any]:
    if _TASK_ID.fullmatch(name.task):
        tasks = _describe(call_ecs, name.cluster, [name.task])
        if not tasks:
            raise TargetNotFound(
                f"there is no task {name.task} in the cluster {name.cluster}",
                hint=f"the tasks there are: aws ecs list-tasks --cluster {name.cluster}",
            )
    else:
        request = {
            "cluster": name.cluster,
            "serviceName": name.task,
            "desiredStatus": "RUNNING",
            "maxResults": _LARGEST_PAGE,
        }
        tasks = _describe(call_ecs, name.cluster, call_ecs("ListTasks", request).get("taskArns") or [])
    running = [task for task in tasks if task.get("lastStatus") == "RUNNING"]
    if not running:
        states = ", ".join(sorted({str(task.get("lastStatus")) for task in tasks}))
        raise TargetNotFound(
            f"'{text}' has no running task",
            cause=f"its tasks are {states}" if states else f"the service {name.task} has none",
            hint=f"see what happens there: aws ecs describe-services --cluster {name.cluster} --services {name.task}"
            if not _TASK_ID.fullmatch(name.task)
            else f"name the service instead of the task: ecs:{name.cluster}/SERVICE",
        )
    ready = [task for task in running if _containers(task)]
    if not ready:
        raise _without_agent(text, name, running)
    newest = max(ready, key=_start)
    if len(ready) > 1:
        others = f"{len(ready) - 1} other{'s' if len(ready) > 2 else ''}"
        notify(f"{text} is task {_task_id(newest)}, the newest; {others} could be had as ecs:{name.cluster}/TASK-ID")
    return newest


def _describe(call_ecs: EcsCall, cluster: str, tasks: list[str]) -> list[Mapping[str, Any]]:
    if not tasks:
        return []
    return list(call_ecs("DescribeTasks", {"cluster": cluster, "tasks": tasks}).get("tasks") or [])


def _choose_container(text: str, name: _Name, task: Mapping[str, Any]) -> Mapping[str, Any]:
    usable = _containers(task)
    names = ", ".join(str(container.get("name")) for container in usable)
    if name.container is None:
        if len(usable) == 1:
            return usable[0]
        raise TargetAmbiguous(
            f"'{text}' has several containers: {names}",
            hint=f"name one: ecs:{name.cluster}/{name.task}/{usable[0].get('name')}",
        )
    for container in usable:
        if container.get("name") == name.container:
            return container
    known = any(container.get("name") == name.container for container in task.get("containers") or [])
    raise TargetNotFound(
        f"the container {name.container} of task {_task_id(task)} "
        + ("does not run, or its agent does not" if known else "does not exist"),
        cause=f"sessions can go to: {names}",
        hint=f"name one of them: ecs:{name.cluster}/{name.task}/{usable[0].get('name')}",
    )


def _containers(task: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Give the containers of a task that a session can go to."""
    return [
        container
        for container in task.get("containers") or []
        if container.get("runtimeId")
        and container.get("lastStatus") == "RUNNING"
        and any(
            agent.get("name") == _AGENT and agent.get("lastStatus") == "RUNNING"
            for agent in container.get("managedAgents") or []
        )
    ]


def _without_agent(text: str, name: _Name, running: list[Mapping[str, Any]]) -> TargetNotFound:
    if not any(task.get("enableExecuteCommand") for task in running):
        return TargetNotFound(
            f"the tasks of '{text}' do not take sessions",
            cause="they were started without ECS Exec (enableExecuteCommand)",
            hint=f"run: aws ecs update-service --cluster {name.cluster} "
            f"--service {'SERVICE' if _TASK_ID.fullmatch(name.task) else name.task} "
            "--enable-execute-command --force-new-deployment",
        )
    return TargetNotFound(
        f"no container of '{text}' takes sessions",
        cause=f"its {_AGENT} does not run",
        hint="a task that has just started needs some seconds; otherwise check that its task role allows "
        "ssmmessages:CreateControlChannel, CreateDataChannel, OpenControlChannel and OpenDataChannel",
    )


def _start(task: Mapping[str, Any]) -> float:
    """Give when a task started, in seconds since 1970; botocore gives a datetime."""
    started = task.get("startedAt")
    return started.timestamp() if isinstance(started, datetime) else 0.0


def _task_id(task: Mapping[str, Any]) -> str:
    return _last_part(task.get("taskArn"))


def _last_part(arn: object) -> str:
    return str(arn).rpartition("/")[2]
