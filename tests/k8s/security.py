"""The rules of Kubernetes' Pod Security Standard `restricted`, which holds those of `baseline`.

Written from https://kubernetes.io/docs/concepts/security/pod-security-standards/, as of Kubernetes 1.34, for
Linux pods. What a namespace that enforces `restricted` would say of a pod, `violations` says here.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

VOLUMES = {
    "configMap", "csi", "downwardAPI", "emptyDir", "ephemeral", "persistentVolumeClaim", "projected", "secret",
}  # fmt: skip
SYSCTLS = {
    "kernel.shm_rmid_forced", "net.ipv4.ip_local_port_range", "net.ipv4.ip_local_reserved_ports",
    "net.ipv4.ip_unprivileged_port_start", "net.ipv4.ping_group_range", "net.ipv4.tcp_fin_timeout",
    "net.ipv4.tcp_keepalive_intvl", "net.ipv4.tcp_keepalive_probes", "net.ipv4.tcp_keepalive_time",
    "net.ipv4.tcp_rmem", "net.ipv4.tcp_syncookies", "net.ipv4.tcp_wmem",
}  # fmt: skip
SELINUX = {"", "container_t", "container_init_t", "container_kvm_t", "container_engine_t"}
PROFILES = {"RuntimeDefault", "Localhost"}
HANDLERS = ("httpGet", "tcpSocket")


def violations(pod: dict[str, Any]) -> list[str]:
    """Return what keeps a pod (a PodSpec) out of a namespace that enforces `restricted`."""
    shared = pod.get("securityContext") or {}
    found = [name for name in ("hostNetwork", "hostPID", "hostIPC") if pod.get(name)]
    for volume in pod.get("volumes", []):
        kinds = set(volume) - {"name"}
        if not kinds <= VOLUMES:
            found.append(f"volume {volume['name']}: {sorted(kinds - VOLUMES)[0]}")
    for sysctl in shared.get("sysctls", []):
        if sysctl["name"] not in SYSCTLS:
            found.append(f"sysctl {sysctl['name']}")
    found += [f"pod: {text}" for text in _context(shared)]
    if shared.get("runAsUser") == 0:
        found.append("pod: runAsUser 0")
    for kind in ("initContainers", "containers", "ephemeralContainers"):
        for container in pod.get(kind, []):
            found += [f"{container['name']}: {text}" for text in _container(container, shared)]
    return found


def _context(context: dict[str, Any]) -> Iterator[str]:
    """What neither a pod nor a container may say."""
    if (context.get("windowsOptions") or {}).get("hostProcess"):
        yield "hostProcess"
    if (context.get("appArmorProfile") or {"type": "RuntimeDefault"})["type"] not in PROFILES:
        yield "appArmorProfile"
    linux = context.get("seLinuxOptions") or {}
    if linux.get("type", "") not in SELINUX or linux.get("user") or linux.get("role"):
        yield "seLinuxOptions"
    if (context.get("seccompProfile") or {"type": "RuntimeDefault"})["type"] not in PROFILES:
        yield "seccompProfile"


def _container(container: dict[str, Any], shared: dict[str, Any]) -> Iterator[str]:
    own = container.get("securityContext") or {}
    yield from _context(own)
    if own.get("privileged"):
        yield "privileged"
    if own.get("procMount", "Default") != "Default":
        yield "procMount"
    if own.get("allowPrivilegeEscalation") is not False:
        yield "allowPrivilegeEscalation is not false"
    capabilities = own.get("capabilities") or {}
    if "ALL" not in capabilities.get("drop", []):
        yield "does not drop ALL capabilities"
    if set(capabilities.get("add", [])) - {"NET_BIND_SERVICE"}:
        yield "adds capabilities"
    if own.get("runAsNonRoot", shared.get("runAsNonRoot")) is not True:
        yield "runAsNonRoot is not true"
    if own.get("runAsUser") == 0:
        yield "runAsUser 0"
    if not (own.get("seccompProfile") or shared.get("seccompProfile")):
        yield "no seccompProfile"
    if any(port.get("hostPort") for port in container.get("ports", [])):
        yield "hostPort"
    hooks = container.get("lifecycle") or {}
    handlers = [container[name] for name in container if name.endswith("Probe")] + list(hooks.values())
    if any((handler.get(kind) or {}).get("host") for handler in handlers for kind in HANDLERS):
        yield "host of a probe or a hook"
