"""The commands of ``nvmeof-host`` by name: the module that has each, and what the list says of it.

So that ``--help`` imports none of them: with all it would take several times as long. Made by tools/command_table.py.
"""

from __future__ import annotations

from typing import Final

_SUMMARIES: Final = {
    "bench": {
        "bench": "Measure IOPS, throughput, latency, CPU time.",
    },
    "config": {
        "config": "Show and change config.json, the file that libnvme and connect-all take subsystems from.",
    },
    "cp": {
        "cp": "Copy between files, namespaces and standard streams.",
    },
    "data": {
        "read": "Read logical blocks to a file or stdout, one block unless told otherwise; a hex dump on a terminal.",
        "write": "Write a file or stdin to logical blocks; the last block is filled up with zeroes.",
    },
    "discovery": {
        "discover": "Show what a discovery service knows, or those of config.json and discovery.conf.",
        "connect-all": "Connect to all that discovery services and their referrals name, and hold it until Ctrl-C.",
    },
    "export": {
        "export": "Serve namespaces to NBD clients (nbdfuse, nbd-client, qemu, nbdcopy), until Ctrl-C or SIGTERM.",
    },
    "identify_rows": {
        "list-ns": "The namespaces that are attached to the controller.",
        "list-ctrl": "The controllers of the subsystem, or those that a namespace is attached to.",
        "ns-descs": "The identifiers of a namespace: EUI-64, NGUID, UUID, command set.",
        "nvm-id-ctrl": "Identify Controller of the NVM command set.",
        "nvm-id-ns": "Identify Namespace of the NVM command set.",
        "cmdset-ind-id-ns": "Identify Namespace, what does not depend on the command set.",
        "id-iocs": "The combinations of command sets.",
        "id-uuid": "The UUID list.",
        "id-ns-granularity": "Granularities of namespaces' sizes and capacities.",
        "list-endgrp": "The endurance groups.",
        "get-lba-status": "Get LBA Status: blocks that may not be readable.",
        "resv-report": "Reservation Report: the registrants, and who holds the reservation.",
    },
    "log_rows": {
        "supported-log-pages": "Supported Log Pages (00h).",
        "fw-log": "Firmware Slot Information log page (03h).",
        "changed-ns-list-log": "Changed Attached Namespace List log page (04h); reading it clears it.",
        "changed-alloc-ns-list-log": "Changed Allocated Namespace List log page (1Ch); reading it clears it.",
        "fid-support-effects-log": "Feature Identifiers Supported and Effects log page (12h).",
        "mi-cmd-support-effects-log": "NVMe-MI Commands Supported and Effects log page (13h).",
        "resv-notif-log": "Reservation Notification log page (80h); reading it removes the notification.",
        "sanitize-log": "Sanitize Status log page (81h).",
        "effects-log": "Commands Supported and Effects log page (05h), of each command set.",
        "self-test-log": "Device Self-test log page (06h), newest result first.",
        "endurance-log": "Endurance Group Information log page (09h).",
        "persistent-event-log": "Persistent Event log page (0Dh): what has happened to the subsystem.",
        "lba-status-log": "LBA Status Information log page (0Eh).",
        "telemetry-log": "Telemetry log page (07h, or 08h), to a file: its header and the data areas up to "
        "--data-area.",
    },
    "logs": {
        "smart-log": "SMART / Health Information log page.",
        "error-log": "Error Information log page, newest entry first.",
        "ana-log": "Asymmetric Namespace Access log page: the state of each group of namespaces on this path.",
        "get-log": "Any log page, as a hex dump, as JSON with the bytes in hexadecimal, or raw.",
        "get-feature": "A feature's value, and what it means.",
    },
    "management_rows": {
        "format": "Format NVM: give a namespace a block format, and delete its data.",
        "sanitize": "Sanitize: delete all data of the subsystem, beyond recovery.",
        "device-self-test": "Begin or abort a device self-test.",
        "create-ns": "Create a namespace; it is attached to no controller yet.",
        "attach-ns": "Attach a namespace to controllers.",
        "detach-ns": "Detach a namespace from controllers.",
        "delete-ns": "Delete a namespace and its data.",
        "set-feature": "Set a feature.",
    },
    "mptcpize": {
        "mptcpize": "Run PROGRAM with MPTCP in place of TCP.",
    },
    "nvm_rows": {
        "compare": "Compare a file or stdin with logical blocks: the controller does it.",
        "verify": "Verify that logical blocks can be read, without transferring them.",
        "write-uncor": "Make logical blocks unreadable, until they are written again.",
        "write-zeroes": "Set logical blocks to zero without sending zeroes.",
        "flush": "Bring all completed writes to the medium.",
        "dsm": "Dataset Management: deallocate ranges, or say how they will be used.",
        "copy": "Have the controller copy ranges of blocks, one behind the other.",
        "resv-register": "Reservation Register: register, withdraw or replace this host's key.",
        "resv-acquire": "Reservation Acquire: acquire, preempt, or preempt and abort.",
        "resv-release": "Reservation Release: release the reservation, or clear all registrations.",
    },
    "passthru": {
        "show-regs": "The properties of the controller: CAP, VS, CC, CSTS and so on.",
        "get-property": "One property of the controller.",
        "set-property": "Set a property of this command's controller.",
        "admin-passthru": "Send any admin command, and show what came back.",
        "io-passthru": "Send any I/O command, and show what came back.",
    },
    "paths": {
        "paths": "MPTCP paths of this network namespace: show, change and watch them.",
    },
    "saved": {
        "saved": "Saved connections: short names in place of URLs, which `connect --save NAME` makes too.",
    },
    "secrets": {
        "gen-dhchap-key": "Make a random secret for DH-HMAC-CHAP, and print it.",
        "check-dhchap-key": "Check a secret's form and checksum; say what it is, and not the secret.",
        "gen-tls-key": "Make a random pre-shared key for TLS, and print it in the interchange form.",
        "check-tls-key": "Check a TLS key's form and checksum; say what it is, and its identity, and not the key.",
    },
    "shell": {
        "completion": "Print what makes a shell complete commands, options and saved connections.",
        "man": "Write the manual pages into DIRECTORY, ~/.local/share/man/man1 for instance.",
    },
    "show": {
        "list": "Show the namespaces of a subsystem, or of all that discovery names.",
        "id-ctrl": "Identify Controller.",
        "id-ns": "Identify Namespace.",
        "connect": "Connect, show what came of it, and hold the connection until Ctrl-C.",
        "gen-hostnqn": "A new host NQN.",
    },
    "subsystem": {
        "list-subsys": "Connect over all given paths, and show the subsystem with them, their ANA states and its "
        "namespaces.",
        "show-topology": "Connect over all given paths, and show each namespace with its paths and their ANA states.",
    },
    "zns_rows": {
        "zns": "Zoned namespaces: reports, states of zones, appending.",
    },
}

COMMANDS: Final = {
    name: (f"nvmeof.host.cli.{module}", summary)
    for module, commands in _SUMMARIES.items()
    for name, summary in commands.items()
}
"""By name: module and summary."""
