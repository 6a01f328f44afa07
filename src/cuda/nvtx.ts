/**
 * NVTX, NVIDIA's annotations for profilers: its functions with their koffi types, the layout of its struct, and where its library
 * is. No Effect here.
 *
 * Only ranges with a start and an end are here. Pushed and popped ranges belong to a thread, on which fibers take turns.
 *
 * @since 0.1.0
 */
import { toolkitFolders } from "./find.ts"
import type { Environment, Files, Places } from "./find.ts"

const attributes = "void *"
const domain = "uintptr_t"
const range = "uint64_t"
const text = "str"
const uint = "uint32_t"

/** The functions, each with its result and parameters. */
export const nvtxFunctions = {
  nvtxInitialize: ["void", "uintptr_t"],
  nvtxDomainCreateA: [domain, text],
  nvtxNameCategoryA: ["void", uint, text],
  nvtxDomainNameCategoryA: ["void", domain, uint, text],
  nvtxRangeStartEx: [range, attributes],
  nvtxRangeEnd: ["void", range],
  nvtxMarkEx: ["void", attributes],
  nvtxDomainRangeStartEx: [range, domain, attributes],
  nvtxDomainRangeEnd: ["void", domain, range],
  nvtxDomainMarkEx: ["void", domain, attributes]
} as const

/** Those that a library may lack. */
export const optionalNvtxFunctions = {
  nvtxNameCuStreamA: ["void", "uintptr_t", text]
} as const

/** The name of a function. */
export type NvtxFunctionName = keyof typeof nvtxFunctions

/** An id of a range: a bigint beyond 2^53. */
export type RangeId = number | bigint

/** The functions bound to a library. */
export interface NvtxFunctions {
  readonly nvtxInitialize: {
    readonly async: (reserved: number, onEnd: (error: unknown, status: number) => void) => void
  }
  readonly nvtxDomainCreateA: (name: string) => number
  readonly nvtxNameCategoryA: (category: number, name: string) => void
  readonly nvtxDomainNameCategoryA: (domain: number, category: number, name: string) => void
  readonly nvtxRangeStartEx: (attributes: Uint8Array) => RangeId
  readonly nvtxRangeEnd: (range: RangeId) => void
  readonly nvtxMarkEx: (attributes: Uint8Array) => void
  readonly nvtxDomainRangeStartEx: (domain: number, attributes: Uint8Array) => RangeId
  readonly nvtxDomainRangeEnd: (domain: number, range: RangeId) => void
  readonly nvtxDomainMarkEx: (domain: number, attributes: Uint8Array) => void
  readonly nvtxNameCuStreamA?: (stream: number, name: string) => void
}

/** `nvtxEventAttributes_v2`. */
export const attributesLayout = {
  size: 48,
  version: 0,
  structSize: 2,
  category: 4,
  colorType: 8,
  color: 12,
  payloadType: 16,
  payload: 24,
  messageType: 32,
  message: 40
} as const

/** `NVTX_VERSION`, `NVTX_COLOR_ARGB` and `NVTX_MESSAGE_TYPE_ASCII`. */
export const nvtxVersion = 3
export const argbColor = 1
export const asciiMessage = 1

/** The variable by which a profiler makes NVTX load it. NVTX looks at no other one in a process of 64 bits. */
export const injectionVariable = "NVTX_INJECTION64_PATH"

/** The places to search: NVTX 3 as a library, which CUDA 12.9 and later have, and NVTX 2 before it. */
export const nvtxPlaces = (platform: NodeJS.Platform, environment: Environment): Places => {
  const folders = toolkitFolders(["nvtx"], platform, environment)
  if (platform === "linux") return { names: ["libnvtx3interop.so.1", "libnvToolsExt.so.1"], folders }
  if (platform === "win32") return { names: ["nvToolsExt64_1.dll"], folders }
  return { names: [], folders }
}

const isNewer = (file: string) => file.startsWith("libnvtx3interop")

/** The files of NVTX. */
export const nvtxFiles: Files = {
  title: "NVTX",
  matches: /^(?:libnvtx3interop\.so(?:\.\d+)*|libnvToolsExt\.so(?:\.\d+)*|nvToolsExt64_\d+\.dll)$/,
  order: (one, other) => Number(isNewer(other)) - Number(isNewer(one)) || one.length - other.length
}
