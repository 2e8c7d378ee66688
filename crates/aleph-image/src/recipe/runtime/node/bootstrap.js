#!/usr/bin/node
require("/var/runtime/aleph_start.js");
