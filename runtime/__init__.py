"""What runs a replica: its ranks, its steps, its blocks, its control stream, and Ray around it.

- `rank`: engine, paged KV and both ends of KV transfer of one rank
- `rank_service`, `rank_link`, `rank_wire`: a rank in another process, and the link to it
- `rank_group`: all ranks of a replica, as its leader drives them
- `step_loop`: joins the rows of prefill and decode into batches
- `holdings`, `intake`, `stored_prefix`: blocks, by owner; how a prompt gets them and what is stored
- `control`, `work_check`: the stream to routers, and what they may ask
- `actor`, `supervisor`, `cluster`: Ray: the processes, their lives, the cluster
"""
