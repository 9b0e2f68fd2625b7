"""One model replica, below batching: weights, paged KV, the batch step and sampling.

Getting a model:

- `catalog`: a built-in name, a path or a hub id -> a Hugging Face directory
- `gguf_convert`, `gguf_file`, `gguf_tokenizer`: GGUF -> Hugging Face directory
- `build_once`, `digest`: conversions done once for all processes; digests of files
- `checkpoint`: a directory's config and its mapped safetensors
- `architecture`, `moe_config`, `rope_config`, `hf_fields`: what its config.json says of the model

Computing it:

- `torch_engine`: the engine port; `load_engine`
- `blocks`, `block_groups`: which blocks are held, cached or free; of a replica's groups
- `rank_slice`: which part of a model a rank has, and which layouts fit it
- `comm`, `process_groups`: what ranks say to each other; over torch.distributed
- `kv_memory`, `kv_planes`: the paged KV, read and written in canonical form; its dtypes
- `weights`, `tensor_reader`, `weight_shapes`: one rank's weights, fused and packed
- `layers`, `norm`: attention and feed-forward network, summed over the ranks that share them
- `latent`: multi-head latent attention
- `experts`, `routing`, `placement`: mixtures of experts, spread over ranks
- `linear`, `quantize`: matrix products in the form that a device is fast at; int8
- `batch`: a step laid out as tensors
- `model`, `rotary`, `attention`: the forward pass, over stages and groups
- `sampling`: from logits to tokens
"""
