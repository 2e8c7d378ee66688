#!/usr/bin/python3.11
# Only this file is compiled at each start: what it does is in a module.
import aleph_start

aleph_start.main()
