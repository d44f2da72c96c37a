"""The queue devices of a program, and which of them carries an association."""

from __future__ import annotations

from collections.abc import Iterator

from nvmeof.errors import ConfigurationError, NvmeofError
from nvmeof.host.options import ConnectOptions
from nvmeof.host.queue import QueueDevice

QUEUE_OPS = (
    "claim_dev",
    "setup_ctrl",
    "release_ctrl",
    "create_queue",
    "send_req",
    "poll_queue",
    "drain_queue",
    "destroy_queue",
)

GENERIC_OPTS = frozenset(
    {
        "traddr",
        "trsvcid",
        "transport",
        "subnqn",
        "hostnqn",
        "hostid",
        "nr_io_queues",
        "queue_size",
        "keep_alive_tmo",
        "disable_sqflow",
        "discovery",
        "io_timeout",
        "admin_timeout",
        "connect_timeout",
        "abort_first",
        "dhchap",
    }
)
"""Options that concern the controller only, and that every device takes therefore."""


class DeviceRegistry:
    """The devices that a controller may be created on, in order of registration."""

    def __init__(self, *devices: QueueDevice) -> None:
        self._devices: list[QueueDevice] = []
        for device in devices:
            self.register(device)

    def __iter__(self) -> Iterator[QueueDevice]:
        return iter(list(self._devices))

    def register(self, device: QueueDevice) -> None:
        """Add a device. Raises :class:`ConfigurationError` when an operation or a limit is missing, or it is registered
        already."""
        missing = [op for op in QUEUE_OPS if not callable(getattr(device, op, None))]
        limits = ("required_opts", "allowed_opts", "max_hw_sectors", "max_segments", "name")
        missing += [name for name in limits if getattr(device, name, None) is None]
        if missing:
            raise ConfigurationError(f"the queue device {device!r} lacks {', '.join(missing)}")
        if device in self._devices:
            raise ConfigurationError(f"the queue device {device.name} is registered already")
        self._devices.append(device)

    def unregister(self, device: QueueDevice) -> None:
        """Remove a device. Raises :class:`ConfigurationError` when it is not registered."""
        if device not in self._devices:
            raise ConfigurationError(f"the queue device {device.name} is not registered")
        self._devices.remove(device)

    def claim(self, options: ConnectOptions) -> QueueDevice:
        """Return the first device that claims the route; its options are checked. Raises
        :class:`ConfigurationError`, or what a device says of the route where none claims it."""
        refusal: NvmeofError | None = None
        for device in self._devices:
            try:
                claimed = device.claim_dev(options)
            except NvmeofError as error:
                refusal = refusal or error
                continue
            if claimed:
                check_options(device, options)
                return device
        if refusal is not None:
            raise refusal
        raise ConfigurationError(
            f"no queue device reaches {options.traddr} over {options.transport}; "
            f"there are: {', '.join(device.name for device in self._devices) or 'none'}"
        )


def check_options(device: QueueDevice, options: ConnectOptions) -> None:
    """Raise :class:`ConfigurationError` for an option that ``device`` needs and lacks, or has and does not take."""
    given = options.given()
    missing = device.required_opts - given
    if missing:
        raise ConfigurationError(f"the queue device {device.name} needs the option {sorted(missing)[0]}")
    surplus = given - device.required_opts - device.allowed_opts - GENERIC_OPTS
    if surplus:
        raise ConfigurationError(f"the queue device {device.name} does not take the option {sorted(surplus)[0]}")
