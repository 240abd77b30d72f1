"""The page of `video-gn app`, made by gradio."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING

from video_gn.app.answers import Answers

if TYPE_CHECKING:
    from fastapi import FastAPI

_STYLE = (
    "#video input{width:100%;padding:1.5em .8em;border:2px dashed var(--border-color-primary);border-radius:8px}"
    "#answer h3{margin:1em 0 .4em}#answer .failed{color:#d33;overflow-wrap:anywhere}"
    "#answer :is(table,tbody,tr,td){border:none}#answer td{padding:2px 6px 2px 0}"
    "#answer .picture{width:100%;max-width:760px;border-radius:6px}"
    # The timeline's picture has the segments, in its own colours.
    "#answer .bands,#answer .key{display:none}"
)
# The file goes to our own route, not through gradio. `LIMIT` and `TOO_LARGE` are set before it.
_SEND = """async (explain) => {
  const file = document.querySelector("#video input").files[0];
  const failed = (text) => { const p = document.createElement("p"); p.className = "failed"; p.textContent = text;
                             return p.outerHTML; };
  if (!file) return failed("Choose a video first.");
  if (file.size > LIMIT) return failed(TOO_LARGE);
  const form = new FormData();
  form.append("file", file);
  try {
    const answer = await fetch("api/page?explain=" + Boolean(explain), {method: "POST", body: form});
    return await answer.text();
  } catch (error) {
    return failed("No answer came. Does the app still run, and is the file still there?");
  }
}"""
_BUSY = """() => ["<p role='status'>Computing ... One video is computed at a time.</p>"]"""


def mount_page(app: FastAPI, answers: Answers, too_large: str) -> None:
    """Mount the page at "/", behind the app's own routes; `too_large` is what it says of a file above the bound."""
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # before the import: it would report home
    import gradio

    limits = f"At most {answers.max_bytes / 1e6:g} MB and {answers.max_seconds:g} seconds."
    theme = gradio.themes.Default(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"])
    with gradio.Blocks(title="video-gn", analytics_enabled=False) as blocks:
        gradio.Markdown("# video-gn")
        gradio.Markdown(f"Labels of a video by `{answers.name.replace('`', '')}`. {limits} Nothing is kept.")
        gradio.HTML('<input type="file" accept="video/*,*/*" aria-label="Video">', elem_id="video")
        explain = gradio.Checkbox(
            label="Show where it looks (this takes several times as long)", visible=answers.explains, elem_id="explain"
        )
        button = gradio.Button("Label", variant="primary", elem_id="send")
        answer = gradio.HTML(elem_id="answer")
        script = _SEND.replace("LIMIT", str(answers.max_bytes)).replace("TOO_LARGE", json.dumps(f"A{too_large[1:]}"))
        button.click(None, None, answer, js=_BUSY).then(None, explain, answer, js=script)
    gradio.mount_gradio_app(
        app,
        blocks,
        path="/",
        theme=theme,
        css=_STYLE,
        footer_links=[],
        run_history=False,
        ssr_mode=False,
        enable_monitoring=False,
        mcp_server=False,
        pwa=False,
        allowed_paths=[],
        blocked_paths=["/"],
    )
