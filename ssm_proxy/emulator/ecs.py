"""The operations of the ECS API that lead to a session: tasks and their containers are nodes with ``ecs:`` ids.

A node ``ecs:CLUSTER_TASK_RUNTIME`` is one container of a task that runs, in a service, with ECS Exec enabled. Later
nodes started later.

Source: docs/PROTOCOL.md section 1.2, the public API reference for members, error names and texts.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, NamedTuple

from ssm_proxy.emulator.calls import Answer, ServiceError, check_allowed
from ssm_proxy.emulator.documents import SERVICE_DOCUMENTS, resolve_document
from ssm_proxy.emulator.faults import Faults
from ssm_proxy.emulator.options import Node

_ARN: Final = "arn:aws:ecs:us-east-1:123456789012"
_ID: Final = re.compile(r"ecs:(.+)_([^_]+)_([^_]+)")
_DOCUMENT: Final = "AWS-StartInteractiveCommand"
"""What runs the command; ECS has a document of its own for it, of the same kind."""
_OWNER: Final = "ecs-execute-command"
_LARGEST_PAGE: Final = 100
_AGENT: Final = "ExecuteCommandAgent"


class _Container(NamedTuple):
    node: Node
    cluster: str
    task: str
    runtime_id: str

    @property
    def name(self) -> str:
        return self.node.ecs_names[1]


class EcsControlPlane:
    """Answers calls by name.

    Args:
        nodes: by identifier; asked anew each time.
        add_session: starts a session and gives the answer of StartSession.
        faults: asked anew each time.
    """

    def __init__(
        self, *, nodes: Mapping[str, Node], add_session: Callable[..., Answer], faults: Callable[[], Faults]
    ) -> None:
        self._nodes = nodes
        self._add_session = add_session
        self._faults = faults
        self._start = time.time()
        self._operations: dict[str, Callable[[Mapping[str, Any]], Answer]] = {
            "ListTasks": self._list_tasks,
            "DescribeTasks": self._describe_tasks,
            "ExecuteCommand": self._execute_command,
        }

    def call(self, operation: str, request: Mapping[str, Any]) -> Answer:
        """Answer one call. A streamUrl in the answer is a path; who knows the listener makes it whole.

        Raises:
            ServiceError: what the caller gets instead.
        """
        method = self._operations.get(operation)
        if method is None:
            raise ServiceError("UnknownOperationException", f"The operation {operation} is not known.")
        check_allowed(self._faults(), "ecs", operation)
        return method(request)

    def _list_tasks(self, request: Mapping[str, Any]) -> Answer:
        tasks = self._tasks(_text(request, "cluster", "default"))
        services = {containers[0].node.ecs_names[0] for containers in tasks.values()}
        service = _text(request, "serviceName")
        if service and service not in services:
            raise ServiceError("ServiceNotFoundException", "Service not found.")
        if request.get("desiredStatus", "RUNNING") != "RUNNING":
            tasks = {}
        wanted = service or _text(request, "family")
        found = [
            _task_arn(containers[0])
            for containers in tasks.values()
            if not wanted or containers[0].node.ecs_names[0] == wanted
        ]
        return {"taskArns": found[:_LARGEST_PAGE]}

    def _describe_tasks(self, request: Mapping[str, Any]) -> Answer:
        tasks = self._tasks(_text(request, "cluster", "default"))
        names = request.get("tasks")
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise ServiceError("InvalidParameterException", "Tasks cannot be empty.")
        if not 1 <= len(names) <= _LARGEST_PAGE:
            raise ServiceError("InvalidParameterException", f"Between 1 and {_LARGEST_PAGE} tasks can be described.")
        known = [_last_part(name) for name in names if _last_part(name) in tasks]
        missing = [name for name in names if _last_part(name) not in tasks]
        started = {task: self._start + number for number, task in enumerate(tasks)}
        return {
            "tasks": [_task_value(tasks[task], started[task]) for task in known],
            "failures": [{"arn": name, "reason": "MISSING"} for name in missing],
        }

    def _execute_command(self, request: Mapping[str, Any]) -> Answer:
        command = _text(request, "command")
        if not command:
            raise ServiceError("InvalidParameterException", "Command cannot be empty.")
        if request.get("interactive") is not True:
            raise ServiceError("InvalidParameterException", "Interactive is the only mode supported currently.")
        tasks = self._tasks(_text(request, "cluster", "default"))
        containers = tasks.get(_last_part(_text(request, "task")))
        if containers is None:
            raise ServiceError("InvalidParameterException", "The task provided in the request was not found.")
        name = _text(request, "container") or (containers[0].name if len(containers) == 1 else "")
        container = next((each for each in containers if each.name == name), None)
        if container is None:
            raise ServiceError("InvalidParameterException", f"The container {name} was not found in the task.")
        if not container.node.is_online:
            raise ServiceError(
                "TargetNotConnectedException", "The execute command failed due to an internal error. Try again later."
            )
        session = self._add_session(
            node=container.node,
            document_name="AmazonECS-ExecuteInteractiveCommand",
            document=resolve_document(SERVICE_DOCUMENTS[_DOCUMENT], {"command": [command]}),
            reason="",
            owner=_OWNER,
        )
        return {
            "clusterArn": _cluster_arn(container),
            "containerArn": _container_arn(container),
            "containerName": container.name,
            "interactive": True,
            "session": {
                "sessionId": session["SessionId"],
                "streamUrl": session["StreamUrl"],
                "tokenValue": session["TokenValue"],
            },
            "taskArn": _task_arn(container),
        }

    def _tasks(self, cluster: str) -> dict[str, Sequence[_Container]]:
        """Give the containers of each task of a cluster, by the task's id."""
        tasks: dict[str, list[_Container]] = {}
        for node in self._nodes.values():
            match = _ID.fullmatch(node.node_id)
            if match is not None and match[1] == _last_part(cluster):
                tasks.setdefault(match[2], []).append(_Container(node, *match.groups()))
        if not tasks:
            raise ServiceError("ClusterNotFoundException", "Cluster not found.")
        return dict(tasks)


def _task_value(containers: Sequence[_Container], started: float) -> Answer:
    first = containers[0]
    return {
        "taskArn": _task_arn(first),
        "clusterArn": _cluster_arn(first),
        "group": f"service:{first.node.ecs_names[0]}",
        "launchType": "FARGATE",
        "lastStatus": "RUNNING",
        "desiredStatus": "RUNNING",
        "enableExecuteCommand": True,
        "startedAt": started,
        "containers": [
            {
                "containerArn": _container_arn(container),
                "taskArn": _task_arn(container),
                "name": container.name,
                "runtimeId": container.runtime_id,
                "lastStatus": "RUNNING",
                "managedAgents": [
                    {
                        "name": _AGENT,
                        "lastStatus": "RUNNING" if container.node.is_online else "STOPPED",
                        "lastStartedAt": started,
                    }
                ],
            }
            for container in containers
        ],
    }


def _cluster_arn(container: _Container) -> str:
    return f"{_ARN}:cluster/{container.cluster}"


def _task_arn(container: _Container) -> str:
    return f"{_ARN}:task/{container.cluster}/{container.task}"


def _container_arn(container: _Container) -> str:
    return f"{_ARN}:container/{container.cluster}/{container.task}/{container.runtime_id}"


def _last_part(name: str) -> str:
    """Give a name from itself or from an ARN."""
    return name.rpartition("/")[2]


def _text(request: Mapping[str, Any], name: str, default: str = "") -> str:
    value = request.get(name, default)
    if not isinstance(value, str):
        raise ServiceError("InvalidParameterException", f"{name} is not a string.")
    return value
