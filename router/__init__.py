"""The global router: takes requests, places each on a prefill and a decode worker, streams tokens.

What decides; told what happened and the time, it returns actions:

requests       what enters and leaves the scheduler
scheduler      joins all of these
lifecycle      one request, from the queue to its one ending
attempt        one try at it on one pair of workers
admission      who may enter, and who waits
placement      which pair of workers serves a request; policies
decision_log   what a policy was asked, saw and answered; as lines, decision_lines
fleet          the workers, and how loaded each is
drains         workers that leave, and where their requests go
settling       KV on its way to rest after its request has ended
timers         when each request must next be looked at

What performs:

server         the gRPC server around it all
service        the public calls, from bytes to ending
cluster_service  the operator's calls
edge           outside input, validated once
conversations  sessions: prompt and continuation
text           tokenizer, and text from streamed tokens
chat_template  messages to prompt text
shell          performs actions; owns links, client streams and the timer
links          the control stream to one worker
streams        one request's output on its way to the client
decision_log_file  the decision log on disk
reports        what the router says of itself
views          what it shows of itself at one moment
"""
