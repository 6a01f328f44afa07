/**
 * Libraries beside the driver's own: none is needed to start, and each is loaded by the module that uses it.
 */
import * as Effect from "effect/Effect"
import * as foreignLibrary from "../../cuda/foreignLibrary.ts"
import type { LibraryParameter, LibraryReturn } from "../../cuda/libraryParameters.ts"
import * as nvmlLibrary from "../../cuda/nvmlLibrary.ts"
import * as nvrtcLibrary from "../../cuda/nvrtcLibrary.ts"
import * as CudaParameter from "../../CudaParameter.ts"
import { finding } from "./report.ts"
import type { Finding } from "./report.ts"

const section = "libraries"

/** Looks for the libraries that fit a CUDA version, off the JS thread where they are large. */
export const examineLibraries = (cudaMajor: number): Effect.Effect<ReadonlyArray<Finding>> =>
  Effect.all([
    Effect.promise(nvmlFinding),
    Effect.promise(() => nvrtcFinding(cudaMajor)),
    Effect.promise(() => cublasLtFinding(cudaMajor)),
    Effect.promise(ncclFinding)
  ])

interface Missing {
  readonly searched?: ReadonlyArray<{ readonly path: string; readonly problem: string }>
}

/** The last thing that a loader said about a file that exists is worth more than the places without one. */
const notFound = (subject: string, user: string, advice: string, { searched = [] }: Missing): Finding => {
  const broken = searched.filter(({ problem }) => !/no such f|cannot open shared object|no .* in it/i.test(problem))
  if (broken.length === 0) return finding(section, subject, "note", `not found; ${user} needs it`, { advice })
  const problems = broken.map(({ path, problem }) => `${path}: ${problem}`)
  return finding(section, subject, "warning", ["cannot be loaded:", ...problems].join("\n"), { advice })
}

const found = (subject: string, version: string, path: string): Finding =>
  finding(section, subject, "ok", `${version}, ${path}`, { details: { version, path } })

async function nvmlFinding(): Promise<Finding> {
  const loaded = await nvmlLibrary.load(undefined)
  return loaded._tag === "Loaded"
    ? finding(section, "NVML", "ok", loaded.library.path, { details: { path: loaded.library.path } })
    : notFound(
      "NVML",
      "CudaHealth",
      "It comes with the driver; containers need the capability utility.",
      missing(loaded)
    )
}

async function nvrtcFinding(cudaMajor: number): Promise<Finding> {
  const path = process.env["EFFECT_CUDA_NVRTC"] || undefined
  const loaded = await nvrtcLibrary.load(path, cudaMajor)
  if (loaded._tag === "NotFound") {
    return notFound(
      "NVRTC",
      "CudaProgram.compile",
      `Install a CUDA toolkit or the Python package nvidia-cuda-nvrtc-cu${cudaMajor}, or set EFFECT_CUDA_NVRTC.`,
      loaded
    )
  }
  const { major, minor } = loaded.library.version
  return found("NVRTC", `${major}.${minor}`, loaded.library.path)
}

async function cublasLtFinding(cudaMajor: number): Promise<Finding> {
  const file = process.platform === "win32" ? `cublasLt64_${cudaMajor}.dll` : `libcublasLt.so.${cudaMajor}`
  const loaded = await foreignLibrary.load({
    title: "cuBLASLt",
    path: undefined,
    files: [file],
    wheels: ["cublas"],
    needs: []
  })
  if (loaded._tag !== "Loaded") {
    return notFound(
      "cuBLASLt",
      "CudaBlas",
      `Install a CUDA toolkit or the Python package nvidia-cublas-cu${cudaMajor}.`,
      missing(loaded)
    )
  }
  const version = Number(call(loaded.library, "cublasLtGetVersion", [], CudaParameter.u64, [])) || 0
  return found("cuBLASLt", formatVersion(version), loaded.library.path)
}

/** 130100 is 13.1.0, and 22809 is 2.28.9. */
const formatVersion = (version: number): string =>
  [Math.floor(version / 10_000), Math.floor(version / 100) % 100, version % 100].join(".")

async function ncclFinding(): Promise<Finding> {
  const loaded = await foreignLibrary.load({
    title: "NCCL",
    path: undefined,
    files: ["libnccl.so.2"],
    wheels: ["nccl"],
    needs: []
  })
  if (loaded._tag !== "Loaded") {
    return notFound(
      "NCCL",
      "CudaNccl",
      "Install the package libnccl2 or the Python package nvidia-nccl-cu13.",
      missing(loaded)
    )
  }
  const version = new Int32Array(1)
  call(loaded.library, "ncclGetVersion", [{ kind: "host", access: "write", nullable: false }], "status", [version])
  return found("NCCL", formatVersion(version[0]!), loaded.library.path)
}

const call = (
  library: foreignLibrary.ForeignLibrary,
  name: string,
  parameters: ReadonlyArray<LibraryParameter>,
  returns: LibraryReturn,
  values: ReadonlyArray<unknown>
): unknown => library.bind(name, { parameters, returns })?.(...values)

/** Without koffi nothing can be loaded, which the system's findings say. */
const missing = (loaded: Missing | { readonly _tag: "KoffiNotLoaded" }): Missing => "searched" in loaded ? loaded : {}
