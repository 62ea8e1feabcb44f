# SPDX-License-Identifier: GPL-2.0
"""Unit tests of the scripts; they need git and python3, no kernel tree."""
