"""The PyTorch side of the tests of shared memory: shares a tensor, or opens memory of the parent process."""
import base64
import json
import sys

import torch


def share():
    tensor = torch.arange(1000, dtype=torch.float32, device="cuda")
    tensor += 5
    storage = tensor.untyped_storage()
    _, handle, size, offset, counter, counter_offset, event, needs_event = storage._share_cuda_()
    text = {"handle": base64.b64encode(handle).decode(), "size": size, "offset": offset}
    if needs_event:
        text["event"] = base64.b64encode(event).decode()
    print(json.dumps(text), flush=True)
    sys.stdin.readline()  # the parent has closed the memory
    torch.UntypedStorage._release_ipc_counter_cuda(counter, counter_offset)
    print(json.dumps(tensor[:4].tolist()), flush=True)


def open_memory():
    token = json.loads(sys.stdin.readline())
    handle, ready = base64.b64decode(token["handle"]), base64.b64decode(token["ready"])
    storage = torch.UntypedStorage._new_shared_cuda(
        torch.cuda.current_device(), handle, token["byteLength"], token["offset"], b"/none", 0, ready, True
    )
    tensor = torch.empty(0, dtype=torch.float32, device="cuda").set_(storage)
    first = tensor[:4].tolist()
    tensor.mul_(2)
    torch.cuda.synchronize()
    del tensor, storage
    print(json.dumps(first), flush=True)


torch.cuda.init()
share() if sys.argv[1] == "share" else open_memory()
