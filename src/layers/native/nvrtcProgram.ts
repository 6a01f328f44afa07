/**
 * Runs one compilation: creates the NVRTC program, compiles it, reads the results, and always destroys it. Every call
 * runs on a pool thread, because any of them may block on a lock held by another compilation.
 */
import { nvrtcSuccess } from "../../cuda/nvrtc.ts"
import type { NvrtcLibrary, Stop } from "../../cuda/nvrtcLibrary.ts"

/** The input of a compilation, in the compiler's terms. */
export interface Job {
  readonly source: string
  readonly name: string
  readonly target: "cubin" | "ptx"
  /** All options, including the architecture. */
  readonly options: ReadonlyArray<string>
  readonly headers: ReadonlyArray<readonly [name: string, content: string]>
  readonly nameExpressions: ReadonlyArray<string>
}

/** The output of a compilation. */
export interface Output {
  readonly image: Uint8Array<ArrayBuffer>
  readonly loweredNames: ReadonlyMap<string, string>
  readonly log: string
}

/** How a compilation ended. */
export type Outcome =
  | { readonly _tag: "Compiled"; readonly output: Output }
  | { readonly _tag: "Failed"; readonly call: string; readonly code: number; readonly log: string }

/** Aborts a compilation with the result of the call that failed. */
class Failed extends Error {
  readonly call: string
  readonly code: number
  constructor(call: string, code: number) {
    super(`${call} returned ${code}`)
    this.call = call
    this.code = code
  }
}

/** Compiles a job. Destroys NVRTC's program before it resolves. */
export const runJob = async (library: NvrtcLibrary, job: Job, stop: Stop): Promise<Outcome> => {
  const { calls } = library
  const handle = new BigUint64Array(1)
  const contents = job.headers.map(([, content]) => content)
  const names = job.headers.map(([name]) => name)
  const made = await calls.nvrtcCreateProgram(handle, job.source, job.name, names.length, contents, names)
  if (made !== nvrtcSuccess) return { _tag: "Failed", call: "nvrtcCreateProgram", code: made, log: "" }
  const program = Number(handle[0])
  try {
    return { _tag: "Compiled", output: await compile(library, program, job, stop) }
  } catch (error) {
    if (!(error instanceof Failed)) throw error
    return { _tag: "Failed", call: error.call, code: error.code, log: await readLog(library, program) }
  } finally {
    await calls.nvrtcDestroyProgram(handle)
  }
}

const compile = async (library: NvrtcLibrary, program: number, job: Job, stop: Stop): Promise<Output> => {
  const { calls } = library
  for (const expression of job.nameExpressions) {
    check("nvrtcAddNameExpression", await calls.nvrtcAddNameExpression(program, expression))
  }
  await library.allowStop(program, stop)
  check("nvrtcCompileProgram", await calls.nvrtcCompileProgram(program, job.options.length, job.options))
  const image = job.target === "cubin"
    ? await read(program, "nvrtcGetCUBIN", calls.nvrtcGetCUBINSize, calls.nvrtcGetCUBIN)
    : await read(program, "nvrtcGetPTX", calls.nvrtcGetPTXSize, calls.nvrtcGetPTX)
  return { image, loweredNames: await readNames(library, program, job), log: await readLog(library, program) }
}

const check = (call: string, code: number): void => {
  if (code !== nvrtcSuccess) throw new Failed(call, code)
}

type Reader = (program: number, into: ArrayBufferView) => Promise<number>

const read = async (program: number, call: string, readSize: Reader, readBytes: Reader) => {
  const size = new BigUint64Array(1)
  check(`${call}Size`, await readSize(program, size))
  const bytes = new Uint8Array(Number(size[0]))
  if (bytes.byteLength > 0) check(call, await readBytes(program, bytes))
  return bytes
}

const readNames = async (library: NvrtcLibrary, program: number, job: Job) => {
  const names = new Map<string, string>()
  const address = new BigUint64Array(1)
  for (const expression of job.nameExpressions) {
    check("nvrtcGetLoweredName", await library.calls.nvrtcGetLoweredName(program, expression, address))
    names.set(expression, library.readText(Number(address[0])))
  }
  return names
}

/** The compiler's log; empty if it cannot be read. */
const readLog = async ({ calls }: NvrtcLibrary, program: number): Promise<string> => {
  try {
    const bytes = await read(program, "nvrtcGetProgramLog", calls.nvrtcGetProgramLogSize, calls.nvrtcGetProgramLog)
    const end = bytes.indexOf(0)
    return new TextDecoder().decode(end < 0 ? bytes : bytes.subarray(0, end))
  } catch {
    return ""
  }
}
