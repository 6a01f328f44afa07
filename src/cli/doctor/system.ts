/**
 * The machine without its GPU: Node.js, koffi, device files, and the cache of compiled programs.
 */
import * as Effect from "effect/Effect"
import { constants } from "node:fs"
import { access, mkdir, readdir, stat } from "node:fs/promises"
import { dirname, join } from "node:path"
import { importKoffi } from "../../cuda/koffi.ts"
import { cacheFolder } from "../../layers/native/ProgramCache.ts"
import { finding } from "./report.ts"
import type { Finding } from "./report.ts"

const section = "system"

export const examineSystem: Effect.Effect<ReadonlyArray<Finding>> = Effect.all([
  Effect.sync(nodeFinding),
  Effect.promise(koffiFinding),
  ...process.platform === "linux" ? [Effect.promise(deviceFilesFinding)] : [],
  Effect.promise(cacheFinding)
])

function nodeFinding(): Finding {
  const { bun, deno, node } = process.versions
  const name = bun !== undefined ? "Bun" : deno !== undefined ? "Deno" : "Node.js"
  const version = bun ?? deno ?? node
  const details = { version, platform: process.platform, arch: process.arch }
  const found = `${version}, ${process.platform} ${process.arch}`
  const isSupported = process.platform === "linux" || process.platform === "win32"
  return isSupported
    ? finding(section, name, "ok", found, { details })
    : finding(section, name, "problem", found, { details, advice: "NVIDIA GPUs need Linux or Windows." })
}

async function koffiFinding(): Promise<Finding> {
  const koffi = await importKoffi()
  if ("problem" in koffi) {
    return finding(section, "koffi", "problem", koffi.problem, {
      advice:
        "Install effect-cuda again, on this platform and with optional dependencies. Bundlers must keep koffi external."
    })
  }
  return finding(section, "koffi", "ok", koffi.version, { details: { version: koffi.version } })
}

/** The files through which the driver is reached. Windows and WSL have none. */
async function deviceFilesFinding(): Promise<Finding> {
  const subject = "device files"
  if (await exists("/dev/dxg")) return finding(section, subject, "ok", "/dev/dxg (WSL)")
  const names = await readdir("/dev").catch(() => [])
  const files = names.filter((name) => /^nvidia(?:\d+|ctl|-uvm)$/.test(name)).map((name) => join("/dev", name))
  if (!files.some((file) => /\d$/.test(file))) {
    return finding(
      section,
      subject,
      "problem",
      "no /dev/nvidia0: the kernel driver is not loaded, or this is a container without GPUs",
      {
        advice:
          "Install the NVIDIA driver; start containers with --gpus all and the NVIDIA Container Toolkit on the host."
      }
    )
  }
  const missing = ["/dev/nvidiactl", "/dev/nvidia-uvm"].filter((file) => !files.includes(file))
  if (missing.length > 0) {
    return finding(section, subject, "problem", `${missing.join(" and ")} missing`, {
      advice: "Run nvidia-modprobe -u, or nvidia-smi as root; containers need all device files."
    })
  }
  const denied: Array<string> = []
  for (const file of files) if (!await permits(file, constants.R_OK | constants.W_OK)) denied.push(file)
  return denied.length === 0
    ? finding(section, subject, "ok", files.toSorted().join(", "))
    : finding(section, subject, "problem", `no right to read and write ${denied.join(", ")}`, {
      advice: "Add the user to the files' group (often video or render), or start the container with the device."
    })
}

/** The folder belongs to the user, or can be made. */
async function cacheFinding(): Promise<Finding> {
  const subject = "program cache"
  const configured = process.env["EFFECT_CUDA_CACHE"]
  const folder = configured || cacheFolder(process.env)
  if (folder === undefined || folder === "off") {
    return finding(
      section,
      subject,
      "note",
      folder === "off" ? "turned off by EFFECT_CUDA_CACHE" : "none: the user has no home folder"
    )
  }
  const usable = await makeFolder(folder)
  const advice =
    "Set EFFECT_CUDA_CACHE to a folder of the user that nobody else may write to, or programs compile at each start."
  if (!usable) return finding(section, subject, "warning", `${folder} cannot be written to`, { advice })
  const { mode, uid } = await stat(folder)
  if (process.getuid !== undefined && (uid !== process.getuid() || (mode & 0o022) !== 0)) {
    return finding(section, subject, "warning", `${folder} belongs to another user, or others may write to it`, {
      advice
    })
  }
  const files = await readdir(folder)
  const sizes = await Promise.all(files.map(async (file) => (await stat(join(folder, file))).size))
  const bytes = sizes.reduce((sum, size) => sum + size, 0)
  const found = `${folder}, ${files.length} programs, ${(bytes / 1024 ** 2).toFixed(1)} MiB`
  return finding(section, subject, "ok", found, { details: { folder, programs: files.length, bytes } })
}

/** Whether the folder exists, or could be made, and can be written to. It is made, because the first compilation makes it as well. */
async function makeFolder(folder: string): Promise<boolean> {
  try {
    await mkdir(dirname(folder), { recursive: true })
    await mkdir(folder, { mode: 0o700 }).catch(() => undefined)
    return permits(folder, constants.W_OK | constants.X_OK)
  } catch {
    return false
  }
}

const permits = (path: string, mode: number): Promise<boolean> => access(path, mode).then(() => true, () => false)

const exists = (path: string): Promise<boolean> => permits(path, constants.F_OK)
