# SPDX-License-Identifier: GPL-2.0
"""The programs behind scripts/demo, scripts/test, scripts/bench, scripts/shell and scripts/series."""
