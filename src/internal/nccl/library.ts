/**
 * NCCL as a library: the functions that communicators need, what its codes mean, and its configuration struct.
 */
import type { CudaErrorReason } from "../../CudaError.ts"
import * as CudaLibrary from "../../CudaLibrary.ts"
import * as CudaParameter from "../../CudaParameter.ts"

const { i32, input, output, u64 } = CudaParameter
const { bytes, func, handleOf, hostInput, hostOutput, nullable, stream, text } = CudaLibrary

export const libraryName = "NCCL"
export const idBytes = 128

/** The code of work that was accepted and is in progress. */
export const inProgress = 7

/** The first version whose communicators can be split. */
export const leastVersion = 21800

const codes: { readonly [code: number]: readonly [name: string, description: string, advice?: string] } = {
  1: ["ncclUnhandledCudaError", "a call of CUDA failed inside NCCL", "Set NCCL_DEBUG=WARN to see which."],
  2: ["ncclSystemError", "a call of the system failed, often of the network", "Set NCCL_DEBUG=WARN to see which."],
  3: ["ncclInternalError", "an internal check of NCCL failed", "Set NCCL_DEBUG=WARN to see which."],
  4: ["ncclInvalidArgument", "NCCL refused an argument"],
  5: ["ncclInvalidUsage", "NCCL refused the call, such as two ranks on one device", "Set NCCL_DEBUG=WARN to see why."],
  6: ["ncclRemoteError", "another rank failed or is gone", "Abort the communicator, and shrink or join anew."],
  7: ["ncclInProgress", "an earlier operation of the communicator has not finished"],
  8: ["ncclTimeout", "an operation took too long"]
}

/** The reason for a code, with what NCCL says about it. */
export const reasonOf = (code: number, said?: string): CudaErrorReason => {
  const [name, description = "", advice = ""] = codes[code] ?? []
  const words = said === undefined || said === "" ? description : `${description}; NCCL says: ${said.trim()}`
  return { _tag: "LibraryFailed", library: libraryName, code, name, description: words, advice, isRetryable: false }
}

const communicator = handleOf("nccl")
const ofHost = { context: false, simulate: () => 0 } as const

/** Communicators are handles only once they are adopted; before that, and for calls in a group, they are numbers. */
const address = u64

export const definition = CudaLibrary.define({
  name: libraryName,
  files: () => ["libnccl.so.2"],
  wheels: ["nccl"],
  statuses: (code: number) => reasonOf(code),
  faults: [1],
  pending: [inProgress],
  functions: {
    ncclGetVersion: func([hostOutput], ofHost),
    // Looks for network interfaces.
    ncclGetUniqueId: func([hostOutput], { thread: "own" }),
    ncclGetLastError: func([address], { returns: nullable(text), context: false }),
    ncclCommInitRankConfig: func([hostOutput, i32, bytes(idBytes), i32, hostInput]),
    ncclCommSplit: func([communicator, i32, i32, hostOutput, hostInput], { since: "2.18" }),
    ncclCommShrink: func([communicator, hostInput, i32, hostOutput, hostInput, i32], { since: "2.27" }),
    ncclCommGetAsyncError: func([address, hostOutput], { context: false }),
    ncclCommCount: func([address, hostOutput], { context: false }),
    ncclCommUserRank: func([address, hostOutput], { context: false }),
    // These wait for the device.
    ncclCommDestroy: func([communicator], { thread: "own", simulate: () => 0 }),
    ncclCommAbort: func([communicator], { thread: "own", simulate: () => 0 }),
    ncclGroupStart: func([], { context: false }),
    ncclGroupEnd: func([], { context: false }),
    ncclAllReduce: func([input, output, u64, i32, i32, address, stream]),
    ncclBroadcast: func([input, output, u64, i32, i32, address, stream]),
    ncclReduce: func([input, output, u64, i32, i32, i32, address, stream]),
    ncclAllGather: func([input, output, u64, i32, address, stream]),
    ncclReduceScatter: func([input, output, u64, i32, i32, address, stream]),
    ncclSend: func([input, u64, i32, i32, address, stream]),
    ncclRecv: func([output, u64, i32, i32, address, stream])
  }
})

/** The library, whose failures say what NCCL says about them. */
export const definitionWith = (said: () => string | undefined): typeof definition => ({
  ...definition,
  statuses: (code: number) => reasonOf(code, said())
})

export type Nccl = CudaLibrary.CudaLibrary<typeof definition.functions>
export type NcclFunction = keyof typeof definition.functions

/** `ncclConfig_t` of NCCL 2.28. Older libraries read the part that they know. */
const config = { bytes: 80, magic: 0xcafebeef, version: 22803, blockingAt: 16, pointersAt: [32, 48] } as const
const unset = -(2 ** 31)

/** A configuration in which everything but `blocking` is unset. */
export const configOf = (blocking: boolean, version: number): Uint8Array => {
  const made = new Uint8Array(config.bytes)
  const view = new DataView(made.buffer)
  for (let at = config.blockingAt; at < config.bytes; at += 4) view.setInt32(at, unset, true)
  for (const at of config.pointersAt) view.setBigUint64(at, 0n, true)
  view.setBigUint64(0, BigInt(config.bytes), true)
  view.setUint32(8, config.magic, true)
  view.setUint32(12, Math.min(version, config.version), true)
  view.setInt32(config.blockingAt, blocking ? 1 : 0, true)
  return made
}

/** Since 2.9, the minor version has two digits. */
export const versionOf = (version: number): string =>
  version < 10_000
    ? [Math.floor(version / 1000), Math.floor(version / 100) % 10, version % 100].join(".")
    : [Math.floor(version / 10_000), Math.floor(version / 100) % 100, version % 100].join(".")

/**
 * The environment of the process, as C sees it. In a worker thread, `process.env` is a copy.
 */
export const system = CudaLibrary.define({
  name: "the C library",
  files: () => ["libc.so.6"],
  wheels: [],
  statuses: {},
  functions: { setenv: func([text, text, i32], { context: false }) }
})
