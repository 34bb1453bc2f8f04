"""Texts that break a page which does not escape them."""

from __future__ import annotations

HOSTILE_TEXTS = [
    "<script>window.hit = 1</script>",
    "<img src=x onerror='window.hit = 1'><svg onload=window.hit=1>",
    "</style><script>window.hit = 1</script><!-- </p></section> ]]>",
    '" onmouseover="window.hit = 1" x="',
    "&lt;b&gt; &amp; &quot; &#x41; &nbsp; ' \" `",
    "\u0627\u0644\u0637\u0627\u0642\u0645 \u0644\u0637\u064a\u0641 \u05e9\u05dc\u05d5\u05dd \u202e abc",
    "\U0001f469\u200d\U0001f680 \U0001f600 e\u0301 \u4e2d\u6587",
    "javascript:window.hit=1 {{7*7}} ${7*7} %s",
    "x" * 300,
]
"""tags, attributes, entities, right-to-left marks, emoji, template syntax and a word too long for a line"""
