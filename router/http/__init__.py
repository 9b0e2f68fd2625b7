"""The OpenAI-compatible HTTP front of the router, beside gRPC and behind the same edge.

    bytes ─▶ fields, bodies (JSON to the request that gRPC takes) ─▶ `InferenceService.answer`
          ─▶ answers, failures (what comes back, to JSON and server-sent events) ─▶ bytes

These four are pure; `calls` and `app` do the talking, `server` listens. docs/http.md is the
reference for clients.
"""
