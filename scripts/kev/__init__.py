# SPDX-License-Identifier: GPL-2.0
"""The programs behind scripts/demo, scripts/test, scripts/shell and scripts/series."""
