"""Does with seeds what cloud-init of Debian does in a guest, up to carrying anything out.

Reads a list of questions in JSON from standard input and writes a list of answers. Each question
is a mapping with `ask`.
"""

import base64
import json
import logging
import os
import subprocess
import sys
import tempfile

import yaml
from cloudinit import handlers, helpers, safeyaml, user_data, util
from cloudinit.config import schema
from cloudinit.handlers.cloud_config import CloudConfigPartHandler
from cloudinit.handlers.jinja_template import JinjaTemplatePartHandler
from cloudinit.net import network_state

SCHEMA = schema.get_schema()
WARNINGS = []


class Warnings(logging.Handler):
    def emit(self, record):
        if record.levelno >= logging.WARNING:
            WARNINGS.append(record.getMessage())


class Scripts(handlers.Handler):
    """Keeps what would be run."""

    prefixes = ["#!", "#cloud-boothook"]

    def __init__(self):
        super().__init__("always", version=3)
        self.found = []

    def handle_part(self, data, ctype, filename, payload, frequency, headers):
        self.found.append([ctype, filename, util.decode_binary(payload)])


class MergedConfig(CloudConfigPartHandler):
    """Keeps what would be written down."""

    merged = None

    def _write_cloud_config(self):
        self.merged = self.cloud_buf


def schema_errors(config):
    try:
        schema.validate_cloudconfig_schema(config, SCHEMA, strict=True)
    except schema.SchemaValidationError as error:
        return [str(error)]
    return []


class DataSource:
    """Whose folder parts belong to."""

    def get_instance_id(self):
        return "test"


def plain(value, above=()):
    """The same as JSON has it: YAML has keys of any kind, and lists that are in themselves."""
    if id(value) in above:
        return "(itself)"
    above = (*above, id(value))
    if isinstance(value, dict):
        return {str(key): plain(entry, above) for key, entry in value.items()}
    if isinstance(value, (list, tuple, set)):
        return [plain(entry, above) for entry in value]
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    return str(value)


def ask_seed(question):
    """Merges user-data as the guest would, and reads the other documents."""
    WARNINGS.clear()
    with tempfile.TemporaryDirectory() as folder:
        paths = helpers.Paths({"cloud_dir": folder, "run_dir": folder}, DataSource())
        with open(paths.get_runpath("instance_data_sensitive"), "w") as file:
            json.dump({"v1": {"local_hostname": "rendered"}}, file)
        config, scripts = MergedConfig(paths), Scripts()
        template = JinjaTemplatePartHandler(paths, sub_handlers=[config, scripts])
        by_type = {
            kind: handler
            for handler in (config, scripts, template)
            for kind in handler.list_types()
        }
        blob = base64.b64decode(question["user_data"])
        message = user_data.UserDataProcessor(paths).process(blob)
        state = {
            "handlers": by_type,
            "handlerdir": folder,
            "handlercount": 0,
            "frequency": "once-per-instance",
            "data": None,
            "excluded": [],
        }
        handlers.call_begin(config, None, "once-per-instance")
        handlers.walk(message, handlers.walker_callback, state)
        handlers.call_end(config, None, "once-per-instance")
    merged = config.merged or {}
    vendor = util.load_yaml(question["vendor_data"])
    network = network_state.parse_net_config_data(
        safeyaml.load(question["network_config"]), skip_broken=False
    )
    return {
        "merged": merged,
        "errors": schema_errors(merged) + schema_errors(vendor),
        # What the guest goes by: the user's part and the node's, then defaults.
        "final": util.mergemanydict([dict(merged), dict(vendor), {"users": ["default"]}]),
        "scripts": scripts.found,
        "meta": safeyaml.load(question["meta_data"]),
        "interfaces": list(network.iter_interfaces()),
        "warnings": list(WARNINGS),
    }


def ask_environment(question):
    """What a shell makes of a file of variables."""
    with tempfile.NamedTemporaryFile("w") as file:
        file.write(question["text"])
        file.flush()
        script = 'set -a; . "$1"; exec /usr/bin/env -0'
        ran = subprocess.run(
            ["/bin/sh", "-c", script, "sh", file.name],
            env={},
            capture_output=True,
            check=True,
        )
    pairs = (entry.split("=", 1) for entry in ran.stdout.decode().split("\0") if entry)
    return {name: value for name, value in pairs if name not in ("PWD", "_")}


def ask_yaml(question):
    """What YAML says, by the parser that cloud-init has."""
    return yaml.safe_load(question["text"])


def answer(question):
    try:
        return plain(globals()["ask_" + question["ask"]](question))
    except Exception as error:
        return {"failed": f"{type(error).__name__}: {error}"}


root = logging.getLogger()
root.handlers = [Warnings()]
root.setLevel(logging.WARNING)
answers = [answer(question) for question in json.load(sys.stdin)]
json.dump(answers, sys.stdout)
