"""OpenStack Swift with its S3 interface, all of it in one process, for `tests.swift`.

It runs under the system's Python, which has the packages of Debian. It prints its port when it is ready, and ends
when its standard input does: with the tests, however they end.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from time import time as now

import eventlet

eventlet.monkey_patch()

from eventlet import hubs, wsgi  # noqa: E402
from swift.common import utils  # noqa: E402

# The order matters: Swift checks it.
PROXY = """
[DEFAULT]
swift_dir = {folder}

[pipeline:main]
pipeline = catch_errors gatekeeper listing_formats bulk s3api tempauth copy slo dlo proxy-server

[app:proxy-server]
use = egg:swift#proxy
account_autocreate = true
allow_account_management = true

[filter:catch_errors]
use = egg:swift#catch_errors

[filter:gatekeeper]
use = egg:swift#gatekeeper

[filter:listing_formats]
use = egg:swift#listing_formats

[filter:bulk]
use = egg:swift#bulk
delete_container_retry_count = 0

[filter:s3api]
use = egg:swift#s3api
location = us-east-1
min_segment_size = 1048576

[filter:tempauth]
use = egg:swift#tempauth
user_test_tester = {key} .admin

[filter:copy]
use = egg:swift#copy

[filter:slo]
use = egg:swift#slo
rate_limit_after_segment = 1000000

[filter:dlo]
use = egg:swift#dlo
"""


class Cache:
    """What memcached would do for one process: Swift refuses to authenticate without it."""

    def __init__(self) -> None:
        self.values = {}

    def get(self, key, **_):
        text, until = self.values.get(key, ("null", 0))
        return json.loads(text) if not until or until > now() else None

    def set(self, key, value, time=0, **_):
        self.values[key] = json.dumps(value), now() + time if time else 0

    def incr(self, key, delta=1, time=0, **_):
        value = max((self.get(key) or 0) + delta, 0)
        self.set(key, value, time)
        return value

    def delete(self, key, **_):
        self.values.pop(key, None)


def serve(folder: Path, key: str) -> int:
    """Start the servers, each in a green thread, and return the port of the one for clients."""
    swift_conf = folder / "swift.conf"
    swift_conf.write_text("[swift-hash]\nswift_hash_path_suffix = tests\n")
    utils.SWIFT_CONF_FILE = str(swift_conf)
    from swift.account.server import AccountController
    from swift.common.ring import RingBuilder
    from swift.common.storage_policy import reload_storage_policies
    from swift.common.wsgi import SwiftHttpProtocol, loadapp
    from swift.container.server import ContainerController
    from swift.obj.server import ObjectController

    utils.validate_hash_conf()
    reload_storage_policies()
    (folder / "devices" / "disk").mkdir(parents=True)
    settings = {"devices": str(folder / "devices"), "mount_check": "false", "swift_dir": str(folder)}
    sockets = {name: eventlet.listen(("127.0.0.1", 0)) for name in ("account", "container", "object", "proxy")}
    for name in ("account", "container", "object"):
        builder = RingBuilder(part_power=2, replicas=1, min_part_hours=0)
        port = sockets[name].getsockname()[1]
        place = {"ip": "127.0.0.1", "port": port, "replication_ip": "127.0.0.1", "replication_port": port}
        builder.add_dev({"id": 0, "region": 1, "zone": 1, "weight": 1.0, "device": "disk", **place})
        builder.rebalance()
        builder.get_ring().save(str(folder / f"{name}.ring.gz"))
    (folder / "proxy.conf").write_text(PROXY.format(folder=folder, key=key))
    quiet = utils.get_logger({"log_level": "CRITICAL"})
    applications = {
        "account": AccountController(settings),
        "container": ContainerController(settings),
        "object": ObjectController(settings),
        "proxy": with_cache(loadapp(str(folder / "proxy.conf"))),
    }
    for name, application in applications.items():
        options = {"protocol": SwiftHttpProtocol, "log_output": False, "debug": False}
        eventlet.spawn(wsgi.server, sockets[name], application, quiet, **options)
    return sockets["proxy"].getsockname()[1]


def with_cache(application):
    cache = Cache()

    def answer(environ, start_response):
        environ["swift.cache"] = cache
        return application(environ, start_response)

    return answer


if __name__ == "__main__":
    print(serve(Path(sys.argv[1]), sys.argv[2]), flush=True)
    while True:
        hubs.trampoline(0, read=True)
        if not os.read(0, 64):
            break
