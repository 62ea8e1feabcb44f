# SPDX-License-Identifier: GPL-2.0
"""Unit tests of the scripts; they need git, gcc and python3, no kernel tree."""
