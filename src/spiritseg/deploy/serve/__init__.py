"""Students behind a web page and a JSON endpoint; nothing that is uploaded is kept.

An upload goes to one function of ours and stays in memory: `uploads` decodes it, `students`
segments it, `endpoint` speaks HTTP. The page (`page`) is Gradio's, and runs in the browser
alone: it asks the endpoint as any other client does. Gradio's own upload, file and event routes
are closed, since they keep files, and read them by a path that the client names.
"""
