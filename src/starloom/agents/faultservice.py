"""The Fault service: what armed faults look like on the wire, its server's side, and calls to it."""

import math
from typing import Any, Final

import grpc
import msgspec
from grpc import aio

from starloom.agents import status
from starloom.agents.faultlayer import FaultLayer
from starloom.agents.faultrules import Armed
from starloom.dag.errors import Conflict, InvalidInput, Problem, StarloomError
from starloom.dag.limits import DURATION_SECONDS_MAX, NAME_CHARACTERS_MAX
from starloom.devices.faults import FaultKind
from starloom.v1 import fault_pb2 as pb
from starloom.v1 import fault_pb2_grpc

Context = aio.ServicerContext[Any, Any]

ANSWER_SECONDS: Final = 5.0
"""How long a process is given to answer a call about faults."""
_NUMBERS: Final = ("factor", "add_seconds", "delay_seconds")
_SEED_MAX: Final = 2**63 - 1


class ArmedInfo(msgspec.Struct, frozen=True, kw_only=True):
    """A fault that is armed, for how many seconds more, None until it is healed, and how often it changed something."""

    fault: Armed
    seconds: float | None
    met: int = 0


def to_wire(fault: Armed, seconds: float | None, met: int = 0) -> pb.ArmedFault:
    """A fault that lasts so long from now on."""
    named: dict[str, Any] = msgspec.structs.asdict(fault) | {"what": str(fault.what)}
    del named["until"]
    return pb.ArmedFault(**named, seconds=seconds, met=met)


def from_wire(message: pb.ArmedFault) -> ArmedInfo:
    """A fault, with the seconds that it lasts. Raises InvalidInput with everything that is wrong."""
    problems = []
    if not 0 < len(message.id) <= NAME_CHARACTERS_MAX:
        problems.append(Problem("fault.id", f"has {len(message.id)} characters, not 1 to {NAME_CHARACTERS_MAX}"))
    if message.what not in tuple(FaultKind):
        problems.append(Problem("fault.what", f"there is no fault {message.what!r}"))
    seconds = message.seconds if message.HasField("seconds") else None
    times = {name: getattr(message, name) for name in _NUMBERS} | {"seconds": seconds or 0.0}
    for name, value in times.items():
        if not (math.isfinite(value) and 0 <= value <= DURATION_SECONDS_MAX):
            problems.append(Problem(f"fault.{name}", f"is {value}; use 0 to {DURATION_SECONDS_MAX:g}"))
    if not 0 <= message.chance <= 1:
        problems.append(Problem("fault.chance", f"is {message.chance}; use 0 to 1"))
    if problems:
        raise InvalidInput(problems, "the fault cannot be armed")
    fault = Armed(
        id=message.id,
        what=FaultKind(message.what),
        peer=message.peer,
        address=message.address,
        kind=message.kind,
        factor=message.factor,
        add_seconds=message.add_seconds,
        delay_seconds=message.delay_seconds,
        chance=message.chance,
        seed=message.seed,
        most=message.most,
    )
    return ArmedInfo(fault=fault, seconds=seconds, met=message.met)


class FaultService(fault_pb2_grpc.FaultServiceServicer):
    """Arms and heals the faults of one process."""

    def __init__(self, layer: FaultLayer) -> None:
        self._layer = layer

    async def Arm(self, request: pb.ArmRequest, context: Context) -> pb.ArmResponse:  # noqa: N802
        async with status.reporting(context):
            found = from_wire(request.fault)
            self._layer.arm(found.fault, found.seconds)
            return pb.ArmResponse()
        raise AssertionError("reporting ends the call")

    async def Heal(self, request: pb.HealRequest, context: Context) -> pb.HealResponse:  # noqa: N802
        async with status.reporting(context):
            return pb.HealResponse(healed=[to_wire(*each) for each in self._layer.heal(request.ids)])
        raise AssertionError("reporting ends the call")

    async def ListArmed(self, request: pb.ListArmedRequest, context: Context) -> pb.ListArmedResponse:  # noqa: N802
        async with status.reporting(context):
            return pb.ListArmedResponse(armed=[to_wire(*each) for each in self._layer.armed()])
        raise AssertionError("reporting ends the call")


def add_to(server: aio.Server, layer: FaultLayer) -> None:
    """Serves a layer."""
    fault_pb2_grpc.add_FaultServiceServicer_to_server(FaultService(layer), server)  # type: ignore[no-untyped-call]


class FaultClient:
    """Calls to the Fault services of a cluster's processes, by their addresses.

    Every call raises Conflict where faults are not allowed, Unavailable where nobody answers within ANSWER_SECONDS, and
    what the process answers.
    """

    def __init__(self, token: str) -> None:
        self._metadata = status.auth_metadata(token)

    async def arm(self, address: str, fault: Armed, seconds: float | None) -> None:
        """A fault begins in the process there."""
        await self._call(address, "Arm", pb.ArmRequest(fault=to_wire(fault, seconds)))

    async def heal(self, address: str, ids: list[str]) -> list[ArmedInfo]:
        """Faults end there, all where no ids are given; returns those that were armed."""
        response = await self._call(address, "Heal", pb.HealRequest(ids=ids))
        return [from_wire(fault) for fault in response.healed]

    async def armed(self, address: str) -> list[ArmedInfo]:
        """What is armed there."""
        return [from_wire(fault) for fault in (await self._call(address, "ListArmed", pb.ListArmedRequest())).armed]

    async def _call(self, address: str, method: str, request: Any) -> Any:
        async with aio.insecure_channel(address, options=status.channel_options(address)) as channel:
            stub: Any = fault_pb2_grpc.FaultServiceStub(channel)  # type: ignore[no-untyped-call]
            try:
                return await getattr(stub, method)(request, metadata=self._metadata, timeout=ANSWER_SECONDS)
            except aio.AioRpcError as error:
                raise _meaning(address, error) from error


def _meaning(address: str, error: aio.AioRpcError) -> StarloomError:
    if error.code() == grpc.StatusCode.UNIMPLEMENTED:
        return Conflict("faults are not allowed on this cluster; start it with `starloom up --faults-allowed`")
    return status.from_rpc(error)
