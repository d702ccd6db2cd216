"""Ask the SSH servers of several managed nodes for their version, all at once.

python examples/asyncio_client.py i-0123456789abcdef0 mi-0123456789abcdef0
"""

from __future__ import annotations

import asyncio
import sys

import ssm_proxy


async def version(target: str) -> str:
    reader, writer = await ssm_proxy.open_connection(target, port=22)
    try:
        return (await reader.readline()).decode().strip()
    finally:
        writer.close()
        await writer.wait_closed()


async def main(targets: list[str]) -> None:
    answers = await asyncio.gather(*map(version, targets), return_exceptions=True)
    for target, answer in zip(targets, answers, strict=True):
        if isinstance(answer, ssm_proxy.SsmProxyError):
            answer = f"{answer} ({answer.cause})"
        print(f"{target}: {answer}")


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1:]))
