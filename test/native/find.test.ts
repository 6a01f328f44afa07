/**
 * Finding libraries: the places of each kind of library, patterns, and what a failed search reports. The folders are in memory or in
 * a temporary folder.
 */
import { afterAll, assert, describe, it } from "@effect/vitest"
import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from "node:fs"
import { tmpdir } from "node:os"
import { join } from "node:path"
import { driverPlaces, findInFolders, newestFirst, openFirst, search, toolkitFolders } from "../../src/cuda/find.ts"
import type { Files } from "../../src/cuda/find.ts"
import { nvrtcFiles } from "../../src/cuda/nvrtcLibrary.ts"

const nvml = { linux: "libnvidia-ml.so.1", win32: "nvml.dll", windowsFolders: ["C:\\NVSMI"] }
const demo: Files = { title: "demo", matches: /^libdemo\.so(?:\.\d+)*$/, order: newestFirst }

const root = mkdtempSync(join(tmpdir(), "effect-cuda-find-"))
afterAll(() => rmSync(root, { recursive: true, force: true }))

/** Makes an empty file, and returns its path. */
const put = (...parts: ReadonlyArray<string>): string => {
  const path = join(root, ...parts)
  mkdirSync(join(path, ".."), { recursive: true })
  writeFileSync(path, "")
  return path
}

/** Opens the files of a list, and fails for others as the loader does. */
const opening = (...good: ReadonlyArray<string>) => (path: string) => {
  if (good.includes(path)) return `opened ${path}`
  throw new Error(`cannot open ${path}`)
}

describe("a library of the driver", () => {
  it("is looked for by its name first, then where distributions and containers have it", () => {
    const places = driverPlaces(nvml, "linux", {})
    assert.strictEqual(places[0], "libnvidia-ml.so.1")
    assert.includeMembers([...places], [
      "/usr/lib/wsl/lib/libnvidia-ml.so.1",
      "/usr/lib/x86_64-linux-gnu/libnvidia-ml.so.1",
      "/usr/local/nvidia/lib64/libnvidia-ml.so.1",
      "/usr/local/nvidia/lib/libnvidia-ml.so.1"
    ])
    assert.strictEqual(new Set(places).size, places.length)
  })

  it("is that of Windows first under WSL", () => {
    assert.deepStrictEqual(driverPlaces(nvml, "linux", { WSL_DISTRO_NAME: "Ubuntu" }).slice(0, 2), [
      "/usr/lib/wsl/lib/libnvidia-ml.so.1",
      "libnvidia-ml.so.1"
    ])
  })

  it("is in the system's folder on Windows, or in one of its own", () => {
    assert.deepStrictEqual(driverPlaces(nvml, "win32", { SystemRoot: "D:\\Win" }), [
      "nvml.dll",
      "D:\\Win\\System32\\nvml.dll",
      "C:\\NVSMI\\nvml.dll"
    ])
    assert.deepStrictEqual(driverPlaces(nvml, "darwin", {}), [])
  })
})

describe("a library of the toolkit", () => {
  it("is in toolkits, conda environments, and the wheels of CUDA 12 and 13", () => {
    const folders = toolkitFolders(["cublas"], "linux", { CUDA_PATH: "/cuda", CONDA_PREFIX: "/conda" })
    assert.deepStrictEqual(folders.slice(0, 4), ["/cuda/lib64", "/cuda/lib", "/cuda/targets/*-linux/lib", "/conda/lib"])
    assert.includeMembers([...folders], [
      "/conda/lib/python3*/site-packages/nvidia/cu1*/lib",
      "/conda/lib/python3*/site-packages/nvidia/cublas/lib",
      "/usr/local/cuda/lib64",
      "/usr/local/cuda-*/lib64"
    ])
    assert.isFalse(folders.some((folder) => folder.includes("cuda_nvrtc")))
    assert.deepStrictEqual(toolkitFolders(["cublas"], "darwin", { CUDA_PATH: "/cuda" }), [])
  })

  it("is found in folders that exist, of the newest toolkit first", async () => {
    const [old, recent, wheel] = [
      put("cuda-9.2", "lib64", "libdemo.so.9"),
      put("cuda-13.0", "lib64", "libdemo.so.13"),
      put("venv/lib/python3.12/site-packages/nvidia/cu13/lib", "libdemo.so.13")
    ]
    put("cuda-13.0", "lib64", "libdemo-other.so.13")
    mkdirSync(join(root, "empty"))
    const patterns = [
      `${root}/cuda-*/lib64`,
      `${root}/venv/lib/python3*/site-packages/nvidia/cu1*/lib`,
      `${root}/empty`,
      `${root}/missing/*/lib`
    ]
    assert.deepStrictEqual(await findInFolders(patterns, demo), {
      found: [recent, old, wheel],
      empty: [
        { path: `${root}/empty`, problem: "no demo in it" },
        { path: `${root}/missing/*/lib`, problem: "no such folder" }
      ]
    })
  })
})

describe("NVRTC", () => {
  it("is the newest in each place that matches a star, the driver's version first", async () => {
    const tree: Record<string, ReadonlyArray<string>> = {
      "/usr/local": ["cuda-9.2", "cuda-12.6", "cuda-13.0", "lib", "cuda"],
      "/usr/local/cuda-13.0/lib64": [
        "libnvrtc-builtins.so.13.0",
        "libnvrtc.so",
        "libnvrtc.so.13.0.88",
        "libnvrtc.so.13"
      ],
      "/usr/local/cuda-12.6/lib64": ["libnvrtc.so.12", "libnvrtc.alt.so.12", "libnvrtc.so.13"],
      "/usr/lib64": ["libc.so"]
    }
    const list = (folder: string) =>
      tree[folder] === undefined ? Promise.reject(new Error("ENOENT")) : Promise.resolve(tree[folder])
    const patterns = ["/usr/local/cuda-*/lib64", "/usr/lib64", "/opt/*/lib"]
    const { empty, found } = await findInFolders(patterns, nvrtcFiles(12), list)
    assert.deepStrictEqual(found, [
      "/usr/local/cuda-13.0/lib64/libnvrtc.so.13",
      "/usr/local/cuda-13.0/lib64/libnvrtc.so.13.0.88",
      "/usr/local/cuda-13.0/lib64/libnvrtc.so",
      "/usr/local/cuda-12.6/lib64/libnvrtc.so.12",
      "/usr/local/cuda-12.6/lib64/libnvrtc.so.13"
    ])
    assert.deepStrictEqual(empty, [
      { path: "/usr/lib64", problem: "no NVRTC in it" },
      { path: "/opt/*/lib", problem: "no such folder" }
    ])
  })
})

describe("a search", () => {
  const list = (folder: string) =>
    folder === "/lib" ? Promise.resolve(["libdemo.so.1", "libdemo.so.2"]) : Promise.reject(new Error("ENOENT"))
  const places = { names: ["libdemo.so.2", "libdemo.so"], folders: ["/none", "/lib"] }

  it("takes the loader's library before those of folders, and then lists no folder", async () => {
    const untouched = () => Promise.reject(new Error("listed"))
    assert.deepStrictEqual(await search(places, demo, opening("libdemo.so"), untouched), {
      _tag: "Loaded",
      library: "opened libdemo.so"
    })
  })

  it("goes on after a library that cannot be opened", async () => {
    assert.deepStrictEqual(await search(places, demo, opening("/lib/libdemo.so.1"), list), {
      _tag: "Loaded",
      library: "opened /lib/libdemo.so.1"
    })
  })

  it("that finds nothing lists every place and its problem, in order", async () => {
    assert.deepStrictEqual(await search(places, demo, opening(), list), {
      _tag: "NotFound",
      searched: [
        { path: "libdemo.so.2", problem: "cannot open libdemo.so.2" },
        { path: "libdemo.so", problem: "cannot open libdemo.so" },
        { path: "/lib/libdemo.so.2", problem: "cannot open /lib/libdemo.so.2" },
        { path: "/lib/libdemo.so.1", problem: "cannot open /lib/libdemo.so.1" },
        { path: "/none", problem: "no such folder" }
      ]
    })
  })

  it("waits for libraries that are opened off the thread", async () => {
    const later = async (path: string) => opening("b")(path)
    assert.deepStrictEqual(await openFirst(["a", "b"], later), { _tag: "Loaded", library: "opened b" })
  })
})
